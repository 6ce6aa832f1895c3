"""Kernels that may run or not. Relied on: the switches of oneDNN and cuDNN in ``torch._C``."""

import torch

get_mkldnn_enabled = torch._C._get_mkldnn_enabled
set_mkldnn_enabled = torch._C._set_mkldnn_enabled
get_cudnn_enabled = torch._C._get_cudnn_enabled
set_cudnn_enabled = torch._C._set_cudnn_enabled
