import pytest
import torch

from featalign import data
from featalign.errors import BadOption, ProbeError, UnknownName


@pytest.fixture(scope="module")
def digits():
    return data.load("digits")


def test_probe_is_drawn_from_training_inputs_without_repeats(digits):
    rows = {tuple(row.tolist()) for row in digits.train_inputs}
    x = data.probe(digits, 200, seed=1)
    assert x.shape == (200, 64) and all(tuple(row.tolist()) in rows for row in x)
    assert torch.equal(x, data.probe(digits, 200, seed=1)) and not torch.equal(x, data.probe(digits, 200, seed=2))
    whole = data.probe(digits, len(digits.train_inputs))
    assert torch.equal(whole.sum(0).double().round(), digits.train_inputs.sum(0).double().round())


@pytest.mark.parametrize("size", [0, -1, 5000])
def test_probe_size_out_of_range(digits, size):
    with pytest.raises(ProbeError, match="give 1 to 1442"):
        data.probe(digits, size)


def test_check_probe_names_shape_and_remedy():
    good = torch.rand(3, 64)
    assert data.check_probe(good, (64,)) is good
    for bad, words in [
        (torch.zeros(0, 64), "empty"),
        (torch.zeros(3, 32), r"\[3, 32\]; the clients take \[samples, 64\]"),
        (torch.full((3, 64), float("nan")), "NaN"),
        (torch.zeros(3, 64, dtype=torch.long), "float"),
        ([1.0], "float tensor"),
    ]:
        with pytest.raises(ProbeError, match=words):
            data.check_probe(bad, (64,))


@pytest.mark.parametrize("shape", [(64,), (784,), (28, 28), (3, 32, 32), (1, 28, 28)])
def test_shift_mix_keeps_shape_range_and_seed(shape):
    x = torch.rand(20, *shape)
    more = data.augment(x, 300, seed=0)
    assert more.shape == (300, *shape) and more.dtype == x.dtype
    assert more.min() >= 0 and more.max() <= 1
    assert torch.equal(more, data.augment(x, 300, seed=0)) and not torch.equal(more, data.augment(x, 300, seed=1))


def test_shift_mix_is_a_convex_mixture_of_shifted_images():
    # one image with one bright pixel in the middle: mass 1 must survive, within the reach of the shift
    image = torch.zeros(1, 1, 28, 28)
    image[0, 0, 14, 14] = 1
    more = data.augment(image, 2000, seed=3)
    assert torch.allclose(more.sum((1, 2, 3)), torch.ones(2000), atol=1e-6)
    seen = torch.nonzero(more.sum((0, 1)))
    assert seen.min() == 12 and seen.max() == 16 and len(seen) == 25
    assert (more > 0).sum((1, 2, 3)).max() == 2


def test_shift_fills_with_zero_and_does_not_wrap():
    edge = torch.zeros(1, 1, 8, 8)
    edge[0, 0, :, 0] = 1
    more = data.augment(edge, 200, seed=0)
    assert more[..., 2:].abs().max() == 0
    assert (data.augment(edge, 200, pixels=0) - edge).abs().max() < 1e-6


def test_shift_fill_follows_the_standardisation():
    x = torch.rand(10, 3, 32, 32)
    x[0] = 0
    mean, std = torch.rand(1, 3, 1, 1), torch.rand(1, 3, 1, 1) + 0.5
    plain, standard = data.augment(x, 100), data.augment((x - mean) / std, 100)
    assert torch.allclose((plain - mean) / std, standard, atol=1e-5)


def test_gaussian_has_the_probe_moments():
    torch.manual_seed(0)
    x = torch.randn(400, 6).cumsum(1) + 3
    more = data.augment(x, 50_000, recipe="gaussian").double()
    # clamping to the probe's range trims the tails, hence the tolerance
    assert torch.allclose(more.mean(0), x.mean(0).double(), atol=0.05)
    assert torch.allclose(more.T.cov(), x.double().T.cov(), rtol=0.08, atol=0.08)
    assert (more >= x.amin(0)).all() and (more <= x.amax(0)).all()


def test_none_returns_the_probe():
    x = torch.rand(5, 3)
    assert data.augment(x, 100, recipe="none") is x


def test_augment_bad_input():
    with pytest.raises(ProbeError, match="empty"):
        data.augment(torch.zeros(0, 64), 10)
    with pytest.raises(ProbeError, match="gaussian"):
        data.augment(torch.zeros(5, 63), 10)
    with pytest.raises(ProbeError, match="at least 2"):
        data.augment(torch.zeros(1, 5), 10, recipe="gaussian")
    with pytest.raises(BadOption, match="at least 1"):
        data.augment(torch.zeros(5, 64), 0)
    with pytest.raises(BadOption, match="no option 'angle'"):
        data.augment(torch.zeros(5, 64), 10, angle=3)
    with pytest.raises(BadOption, match="shift of 8"):
        data.augment(torch.zeros(5, 64), 10, pixels=8)
    with pytest.raises(UnknownName, match="shift-mix"):
        data.augment(torch.zeros(5, 64), 10, recipe="shiftmix")
    wide = data.augment(torch.rand(5, 24), 10, image=(1, 4, 6))
    assert wide.shape == (10, 24)


def test_spliced_windows_begin_like_one_and_end_like_another():
    windows = torch.arange(60).reshape(10, 6)  # every token tells its window and its place
    found = data.augment(windows, 300, recipe="splice")
    assert found.shape == (300, 6) and found.dtype == windows.dtype and torch.equal(found[:10], windows)
    assert torch.equal(found % 6, torch.arange(6).expand(300, 6))  # tokens keep their places
    sources = found[10:] // 6
    assert ((sources.diff(dim=1) != 0).sum(1) <= 1).all() and (sources[:, 0] != sources[:, -1]).float().mean() > 0.8
    joints = (sources.diff(dim=1) != 0).nonzero()[:, 1]
    assert set(joints.tolist()) == {0, 1, 2, 3, 4}  # anywhere
    assert torch.equal(data.augment(windows, 4, recipe="splice"), windows[:4])
    assert torch.equal(found, data.augment(windows, 300, recipe="splice"))
    for wrong in (torch.rand(5, 6), torch.arange(6), torch.zeros(5, 1, dtype=torch.long)):
        with pytest.raises(ProbeError, match="windows"):
            data.augment(wrong, 10, recipe="splice")
    for recipe in ("gaussian", "shift-mix", "blend"):
        with pytest.raises(ProbeError, match="splice"):
            data.augment(windows, 10, recipe=recipe)


def test_a_blend_holds_both_kinds_and_is_drawn_alike():
    x = torch.rand(20, 64, generator=torch.Generator().manual_seed(0))
    found = data.augment(x, 100, recipe="blend")
    assert found.shape == (100, 64) and torch.equal(found, data.augment(x, 100, recipe="blend"))
    images = data.augment(x, 70, recipe="shift-mix")
    assert torch.equal(found[:70], images)
    assert torch.equal(data.augment(x, 50, recipe="blend", gaussian_share=0.0), data.augment(x, 50))
    assert data.augment(x[:1], 10, recipe="blend").shape == (10, 64)
    with pytest.raises(BadOption, match="gaussian_share"):
        data.augment(x, 10, recipe="blend", gaussian_share=2.0)
