"""Real processes that talk over gloo, in worlds of one, two and four."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp

from tests.distributed import jobs

WORLDS = (1, 2, 4)


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[dict[str, Any]]]:
    """What the jobs returned, per world size and rank; what fails on any process fails here, with its traceback."""
    found = {}
    mp.get_context("forkserver").set_forkserver_preload(["tests.distributed.jobs"])  # imported once, for all processes
    for world in WORLDS:
        folder = tmp_path_factory.mktemp(f"world{world}")
        mp.start_processes(jobs.run, args=(world, str(folder)), nprocs=world, start_method="forkserver")
        found[world] = [torch.load(Path(folder) / f"found.{rank}") for rank in range(world)]
    return found


@pytest.mark.xdist_group("processes")
def test_every_job_ran_on_every_process(worlds: dict[int, list[dict[str, Any]]]) -> None:
    for world, results in worlds.items():
        assert [list(result) for result in results] == [list(jobs.JOBS)] * world


@pytest.mark.xdist_group("processes")
@pytest.mark.parametrize("job", ["plans", "cut"])
def test_worlds_of_all_sizes_decide_alike(worlds: dict[int, list[dict[str, Any]]], job: str) -> None:
    decisions = [result[job] for results in worlds.values() for result in results]
    assert decisions[0]
    assert all(decision == decisions[0] for decision in decisions)
