from __future__ import annotations

import torch
from torch import nn

from vitcompact.utils.device import device_of, frozen_copy


def small_model() -> nn.Sequential:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4))
    model[2].weight = model[0].weight
    return model.train()


def test_a_frozen_copy_shares_memory_where_it_can() -> None:
    model = small_model()
    copy = frozen_copy(model, "cpu")
    for name, tensor in model.state_dict().items():
        assert copy.state_dict()[name].data_ptr() == tensor.data_ptr()
    assert not copy.training
    assert not any(parameter.requires_grad for parameter in copy.parameters())
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    copy.get_parameter("0.weight").data = torch.zeros(4, 4)
    assert model.get_parameter("0.weight").any()


def test_a_frozen_copy_is_float32_and_keeps_weights_tied() -> None:
    model = small_model().half()
    copy = frozen_copy(model, "cpu")
    assert {tensor.dtype for tensor in copy.state_dict().values() if tensor.is_floating_point()} == {torch.float32}
    assert copy.get_submodule("2").weight is copy.get_submodule("0").weight
    assert model.get_parameter("0.weight").dtype == torch.float16
    torch.testing.assert_close(copy.get_parameter("0.weight"), model.get_parameter("0.weight").float())


def test_a_model_is_where_its_first_parameter_is() -> None:
    assert device_of(nn.Linear(2, 2, device="meta")).type == "meta"
    assert device_of(nn.ReLU()).type == "cpu"
