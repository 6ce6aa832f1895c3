"""A callback for Lightning: sparse training, cuts at given steps or epochs, and resuming from checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from prunekit.plugin import ArgumentError, CheckpointError, Plan
from prunekit_plugins.integrations.callback import PruningWhileTraining


class PruningCallback(PruningWhileTraining, Callback):
    """Prunes a model while Lightning trains it.

    Checkpoints that Lightning writes hold the plan, as JSON, in the state of this callback; ``trainer.fit(...,
    ckpt_path=...)`` with a fresh module and a fresh callback goes on where it stopped. The state of all optimizers that
    hold parameters of the model is cut along; what went is sent to the loggers and to Python's logger ``prunekit``.

    Args:
        pruner: A pruner of the Lightning module or of a part of it.
        at: After which optimizer steps, or epochs, to prune; as many as the pruner has ``iterative_steps``.
        unit: What ``at`` counts.
        copies, regularizer, grow_every: As for `TrainingPruner`.

    Raises:
        ArgumentError: An argument is wrong.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Makes sure that the shapes are rebuilt before Lightning loads the weights of a checkpoint."""
        if trainer.world_size > 1:
            raise ArgumentError(
                "The callback prunes in one process only.",
                why=f"world_size is {trainer.world_size}, and wrappers such as DDP remember the old shapes",
                hint="stop, prune, and go on with the smaller model",
            )
        self._check_model(pl_module)
        load = pl_module.on_load_checkpoint

        def rebuild_and_load(checkpoint: dict[str, Any]) -> None:
            self._rebuild(checkpoint)
            load(checkpoint)

        vars(pl_module)["on_load_checkpoint"] = rebuild_and_load  # the only call that comes before the weights

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Takes back what `setup` did."""
        vars(pl_module).pop("on_load_checkpoint", None)

    def _rebuild(self, checkpoint: Mapping[str, Any]) -> None:
        state = checkpoint.get("callbacks", {}).get(self.state_key)
        if state is None:
            return
        applied = self.training.pruner.graph.applied
        if applied.empty:
            self.training.load_state_dict(state)
        elif plan_of(checkpoint).kept != applied.kept:
            raise CheckpointError(
                "The model was pruned otherwise than the checkpoint.",
                why=f"it made {self.training.pruner.current_step} steps, the checkpoint {state['step']}",
                hint="load the checkpoint into a fresh model with a fresh callback",
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Makes cuts that were due when the checkpoint was written."""
        self._take(trainer.optimizers)
        self._prune(trainer, trainer.global_step if self.unit == "steps" else trainer.current_epoch)

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Adds what the regularizer adds to the gradients, once per step."""
        if self._optimizers and optimizer is self._optimizers[0]:
            self.training.regularize()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Prunes, if a cut is due after this step."""
        if self.unit == "steps":
            self._prune(trainer, trainer.global_step)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prunes, if a cut is due after this epoch."""
        if self.unit == "epochs":
            self._prune(trainer, trainer.current_epoch + 1)

    def _prune(self, trainer: Trainer, done: int) -> None:
        for event in self.training.after(done):
            for logger in trainer.loggers:
                logger.log_metrics(event.metrics(), step=trainer.global_step)

    def state_dict(self) -> dict[str, Any]:
        """Returns what a checkpoint needs: plain data."""
        return self.training.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Checks that the shapes were rebuilt, which happens before Lightning calls this."""
        self._rebuild({"callbacks": {self.state_key: state_dict}})


def plan_of(checkpoint: Mapping[str, Any]) -> Plan:
    """Returns the plan in a checkpoint of Lightning: ``plan_of(torch.load(path)).apply(fresh)`` gives the shapes.

    Args:
        checkpoint: The loaded file.

    Raises:
        CheckpointError: No `PruningCallback` was there when it was written.
    """
    state = checkpoint.get("callbacks", {}).get(PruningCallback.__qualname__)
    if state is None:
        raise CheckpointError("The checkpoint holds no plan.", why="no PruningCallback wrote to it")
    return Plan.from_json(state["plan"])
