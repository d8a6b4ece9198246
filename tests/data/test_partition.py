import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featalign import data
from featalign.errors import BadOption, UnknownName

LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(10), 60))


@settings(deadline=None, max_examples=80)
@given(
    scheme=st.sampled_from(data.schemes.names()),
    clients=st.integers(2, 9),
    seed=st.integers(0, 10_000),
    classes=st.integers(2, 10),
)
def test_every_scheme_deals_each_sample_once(scheme, clients, seed, classes):
    labels = LABELS % classes
    split = data.partition(labels, scheme, clients, seed, **({"special": 0} if scheme == "special-label" else {}))
    dealt = np.concatenate(split.indices)
    assert len(split) == clients and min(map(len, split.indices)) > 0
    assert np.array_equal(np.sort(dealt), np.arange(len(labels)))
    for part, counts in zip(split.indices, split.counts):
        assert np.array_equal(part, np.sort(part))
        assert np.array_equal(np.bincount(labels[part], minlength=classes), counts)


@pytest.mark.parametrize("clients", [2, 5])
@pytest.mark.parametrize("special", [0, 4, 9])
def test_special_label_is_the_published_split(special, clients):
    split = data.partition(LABELS, "special-label", clients, 3, special=special)
    others = (special != LABELS).sum()
    assert split.counts[0, special] == (special == LABELS).sum()
    assert split.counts[0].sum() - split.counts[0, special] == others // 10
    assert split.counts[1:, special].sum() == 0
    rest = split.counts[1:].sum(axis=1)
    assert rest.sum() == others - others // 10 and rest.max() - rest.min() <= 1


@pytest.mark.parametrize("scheme", data.schemes.names())
def test_seed_decides(scheme):
    a, b, c = (data.partition(LABELS, scheme, 3, seed) for seed in (1, 1, 2))
    assert all(np.array_equal(x, y) for x, y in zip(a.indices, b.indices))
    assert a.digests == b.digests != c.digests


def test_iid_sizes_and_shards_labels():
    sizes = data.partition(LABELS, "iid", 7).counts.sum(axis=1)
    assert sizes.max() - sizes.min() <= 1
    few = data.partition(LABELS, "shards", 5, shards=2)
    assert ((few.counts > 0).sum(axis=1) <= 2).all()
    even = data.partition(LABELS, "client-dirichlet", 7, alpha=0.1).counts.sum(axis=1)
    assert even.max() - even.min() <= 1


def test_alpha_sets_the_skew():
    def skew(scheme, alpha):
        drawn = [data.partition(LABELS, scheme, 4, seed, alpha=alpha).counts for seed in range(5)]
        return np.mean([(c / c.sum(axis=1, keepdims=True)).max(axis=1).mean() for c in drawn])

    for scheme in ("dirichlet", "client-dirichlet"):
        assert skew(scheme, 0.05) > skew(scheme, 1.0) > skew(scheme, 100.0)
    # quantity: sizes differ, laws of labels do not
    split = data.partition(np.resize(LABELS, 60_000), "quantity", 3, seed=0, alpha=1.0)
    laws = split.counts / split.counts.sum(axis=1, keepdims=True)
    assert np.ptp(split.counts.sum(axis=1)) > 1000 and np.abs(laws - 0.1).max() < 0.05


def test_table():
    split = data.partition(LABELS, "iid", 2, class_names=tuple("abcdefghij"))
    table = split.table()
    assert list(table.index) == ["A", "B"] and list(table.columns) == [*"abcdefghij", "total"]
    assert table["total"].sum() == len(LABELS)
    assert "total" in split._repr_html_()
    assert "total" in repr(split)
    assert split.to_dict()["counts"] == split.counts.tolist()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"clients": 0}, "0 clients"),
        ({"clients": -3}, "-3 clients"),
        ({"clients": 601, "scheme": "iid"}, "601 clients but only 600 samples"),
        ({"special": 10}, "label 10"),
        ({"special": -1}, "label -1"),
        ({"clients": 1}, "at least 2 clients"),
        ({"share": 1.5}, "share = 1.5"),
        ({"alpha": 0.5}, "no option 'alpha'"),
        ({"scheme": "dirichlet", "alpha": 0.0}, "alpha = 0.0"),
        ({"scheme": "client-dirichlet", "alpha": -1.0}, "alpha = -1.0"),
        ({"scheme": "quantity", "alpha": -1.0}, "alpha = -1.0"),
        ({"scheme": "shards", "shards": 400}, "do not fit"),
        ({"scheme": "dirichlet", "alpha": "x"}, "alpha = 'x'; give a number"),
        ({"scheme": "dirichlet", "alpha": float("inf")}, "finite"),
        ({"scheme": "shards", "shards": 2.5}, "whole number"),
    ],
)
def test_bad_options_say_what_is_wrong(options, words):
    with pytest.raises(BadOption, match=words):
        data.partition(LABELS, **options)


def test_other_bad_input():
    with pytest.raises(UnknownName, match="special-label"):
        data.partition(LABELS, "special-lable")
    with pytest.raises(BadOption, match="integer labels"):
        data.partition(LABELS.astype(float))
    with pytest.raises(BadOption, match="shape"):
        data.partition(LABELS[:, None])
    with pytest.raises(BadOption):
        data.partition(np.zeros(0, dtype=int))


def test_empty_and_tiny_clients_are_named_and_end_nothing():
    split = data.partition(LABELS, "dirichlet", 100, alpha=1e-6)
    assert len(split) == 100 and split.counts.sum() == len(LABELS)
    assert split.too_small() and set(split.too_small()) < set(split.too_small(len(LABELS) + 1))
    empty = {name for name, part in zip(split.client_names, split.indices) if len(part) == 0}
    assert set(split.too_small()) == empty
    assert not data.partition(LABELS, "iid", 60).too_small()


def test_clients_are_named_like_columns():
    names = data.client_names(730)
    assert names[:2] == ("A", "B") and names[25:28] == ("Z", "AA", "AB") and names[51:54] == ("AZ", "BA", "BB")
    assert names[701:703] == ("ZZ", "AAA") and len(set(names)) == 730


def test_real_targets_are_dealt_by_schemes_that_do_not_look_at_them():
    for scheme in ("iid", "quantity"):
        split = data.partition(np.random.default_rng(0).normal(size=(90, 2)), scheme, 3)
        assert split.counts.shape == (3, 1) and split.counts.sum() == 90 and "total" in repr(split)
    with pytest.raises(BadOption, match="use scheme 'iid'"):
        data.partition(np.zeros(90), "dirichlet", 3)


def test_schemes_and_recipes_are_checked_before_any_work():
    data.check_scheme("dirichlet", alpha=1)
    data.check_recipe("shift-mix", pixels=2)
    for check, name in ((data.check_scheme, "dirichlet"), (data.check_recipe, "shift-mix")):
        with pytest.raises(UnknownName, match=name):
            check(name[:-1])
        with pytest.raises(BadOption, match="no option 'beta'"):
            check(name, beta=1)
