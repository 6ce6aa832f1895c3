"""Torch-Pruning's side of ``pretrained.py``, run in its own environment: a classifier in, a pruned one out.

    python pretrained_worker.py JOB RESULT

The crops have no labels: the loss is the cross-entropy of a crop's logits with the class that the uncut classifier says
of it, averaged for Taylor, crop by crop for Hessian.
"""

from __future__ import annotations

import sys
import time
import warnings
from pathlib import Path

import quality_networks as networks
import timm
import torch
from quality_worker import Cutter, gradients


def main() -> None:
    job = torch.load(sys.argv[1], weights_only=True)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    model = timm.create_model("tf_efficientnet_lite0")
    model.load_state_dict(job["state"])
    model.eval()
    with torch.no_grad():
        said = torch.cat([model(part).argmax(1) for part in job["x"].split(32)])
    start = time.process_time()
    slopes = gradients(model, (job["x"], said), job["criterion"])
    cutter = Cutter(model, job["x"], slopes, job["criterion"], job["scope"] == "global", "classifier")
    found = cutter.largest_within(job["budget"] * networks.count_macs(model, job["x"][:1]))
    seconds = time.process_time() - start
    torch.save({"model": found and found[1], "seconds": seconds}, Path(sys.argv[2]))


if __name__ == "__main__":
    main()
