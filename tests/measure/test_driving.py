"""Which inputs drive a unit: planted sums of sparse and of dense inputs."""

import pytest
import torch

from featalign.errors import SpaceMismatch
from featalign.measure.driving import driving_kinds, read_columns


def sparse(samples=2000, columns=24, density=0.05):
    draw = torch.Generator().manual_seed(0)
    return torch.rand(samples, columns, generator=draw) * (torch.rand(samples, columns, generator=draw) < density)


@pytest.mark.parametrize("together", [1, 2, 4])
def test_kinds_and_columns_count_the_inputs_that_a_unit_sums(together):
    x = sparse()
    units = sum(x[:, k::together] for k in range(together)).relu()
    for count in (driving_kinds(units, x), read_columns(units, x)):
        assert abs(float(count.nanmedian()) - together) < 0.2


def test_one_direction_of_pictures_is_one_kind_of_many_columns():
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(3000, 20, generator=draw) @ torch.randn(20, 20, generator=draw)
    units = (x @ torch.randn(20, 3, generator=draw)).relu()
    assert (driving_kinds(units, x) < 1.2).all() and (read_columns(units, x) > 4).all()


def test_units_that_nothing_drives_are_unknown():
    x = sparse()
    noise = torch.rand(len(x), 2, generator=torch.Generator().manual_seed(7))
    assert driving_kinds(torch.zeros(len(x), 1), x).isnan().all() and driving_kinds(noise, x).isnan().any()
    assert read_columns(torch.ones(len(x), 1), x).isnan().all()
    with pytest.raises(SpaceMismatch, match="2000 samples"):
        driving_kinds(noise, x[:10])
