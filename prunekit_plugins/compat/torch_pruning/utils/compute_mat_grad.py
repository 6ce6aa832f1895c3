"""Gradients of weight matrices for every sample by itself, from a layer's inputs and output gradients."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from prunekit.plugin import ArgumentError


class ComputeMatGrad:
    """Computes the gradient of a layer's weight matrix for every sample.

    Called with the inputs of a linear or 2-D convolutional layer, the gradients of its outputs and the layer, it
    returns a tensor ``[batch, outputs, inputs]``; the bias is a last column where the layer has one.
    """

    @classmethod
    def __call__(cls, input: torch.Tensor, grad_output: torch.Tensor, layer: nn.Module) -> torch.Tensor:
        """Computes the gradient; see the class."""
        if isinstance(layer, nn.Linear):
            return cls.linear(input, grad_output, layer)
        if isinstance(layer, nn.Conv2d):
            return cls.conv2d(input, grad_output, layer)
        raise ArgumentError("Only linear and 2-D convolutional layers are known here.", why=type(layer).__name__)

    @staticmethod
    def linear(input: torch.Tensor, grad_output: torch.Tensor, layer: nn.Linear) -> torch.Tensor:
        """For a linear layer: ``grad_output x input``, added up over tokens."""
        inputs = input.reshape(len(input), -1, input.shape[-1])
        gradients = grad_output.reshape(len(grad_output), -1, grad_output.shape[-1])
        return torch.einsum("nto,nti->noi", gradients, _with_ones(inputs, layer.bias is not None))

    @staticmethod
    def conv2d(input: torch.Tensor, grad_output: torch.Tensor, layer: nn.Conv2d) -> torch.Tensor:
        """For a convolution: the same over patches; columns are ``in_channels x kernel``."""
        if layer.groups != 1 or isinstance(layer.padding, str) or layer.padding_mode != "zeros":
            raise ArgumentError("Only convolutions with one group and padding by zeros are known here.")
        patches = F.unfold(input, layer.kernel_size, layer.dilation, layer.padding, layer.stride).transpose(1, 2)
        gradients = grad_output.flatten(2)
        return torch.einsum("not,nti->noi", gradients, _with_ones(patches, layer.bias is not None))


def _with_ones(values: torch.Tensor, wanted: bool) -> torch.Tensor:
    return torch.cat([values, values.new_ones(*values.shape[:-1], 1)], -1) if wanted else values


def try_contiguous(x: torch.Tensor) -> torch.Tensor:
    """Returns a tensor in contiguous memory."""
    return x.contiguous()
