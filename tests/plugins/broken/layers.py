"""Replacements, layer types and rules; a last line that is added registers one of them."""

import torch
from torch import nn

from prunekit import plugin


class Gain(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.gain = nn.Parameter(torch.rand(width) + 0.5)
        self.width, self.text = width, str(width)

    def forward(self, x):
        assert self.text == str(x.shape[-1])
        return x * self.gain


class Twice(nn.Module):
    def __init__(self, source):
        super().__init__()
        self.gain = source.gain

    def forward(self, x):
        return x * self.gain * 2


class Copies(Twice):
    def __init__(self, source):
        super().__init__(source)
        self.gain = nn.Parameter(source.gain.detach().clone())


def torn(module):
    return module.scale  # torn


def no_module(module):
    return module.text


def swapping(convert):
    @plugin.hookimpl
    def prunekit_replacements():
        return {"stand_in": plugin.Replacement("stand_in", Gain, convert)}

    return prunekit_replacements


def wide(module, resizing):
    return {"width": resizing.size("gain", 0) + 1}


def stating(attributes):
    @plugin.hookimpl
    def prunekit_layer_types():
        return {Gain: plugin.LayerType("gain", attributes=attributes)}

    return prunekit_layer_types


def missing(module, resizing):
    return {"width": resizing.size("scale", 0)}  # missing


def forgetful(call):
    call.tie(call["self"].axes[0], call["self"].axes[0])


def stumbling(call):
    return list(call["sefl"].axes)  # stumbling


def ruling(rule):
    @plugin.hookimpl
    def prunekit_op_rules():
        return {"aten::relu": rule}

    return prunekit_op_rules
