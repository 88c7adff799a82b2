"""What an optimiser does to each parameter."""


def settings_by_name(model, groups):
    """{name: (lr_scale, weight_decay)} of a model's parameters, ours or PyTorch's, in groups."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {
        names[id(parameter)]: (group["lr_scale"], group["weight_decay"])
        for group in groups
        for parameter in group["params"]
    }
    assert found.keys() == set(names.values())
    return found
