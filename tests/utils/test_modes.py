"""Networks in evaluation mode for a while."""

from __future__ import annotations

import pytest
from torch import nn

from ghn_fast.utils.modes import evaluation_mode


@pytest.mark.parametrize("fails", [False, True])
def test_every_module_has_its_own_flag_again(fails: bool) -> None:
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Sequential(nn.Dropout(), nn.ReLU()))
    model[0].eval()
    model[1][0].eval()
    before = [module.training for module in model.modules()]
    assert before == [True, False, True, False, True]
    try:
        with evaluation_mode(model):
            assert not any(module.training for module in model.modules())
            if fails:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    assert [module.training for module in model.modules()] == before
