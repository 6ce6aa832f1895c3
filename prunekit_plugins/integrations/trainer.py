"""A callback for the Trainer of Hugging Face's transformers: sparse training, cuts, and resuming from checkpoints."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from prunekit.plugin import ArgumentError, CheckpointError, Plan
from prunekit_plugins.integrations.callback import PruningWhileTraining

FILE = "prunekit.json"
"""The file next to the weights in a checkpoint folder that holds the plan."""


class PruningCallback(PruningWhileTraining, TrainerCallback):
    """Prunes a model while the Trainer trains it.

    Every checkpoint folder that the Trainer writes gets a file ``prunekit.json`` with the plan. To resume, make
    everything as at the start, call `rebuild` with the folder, and then ``trainer.train(resume_from_checkpoint=
    folder)``: the Trainer loads weights before it calls any callback. The optimizer's state is cut along; what went is
    added to the Trainer's log history and sent to Python's logger ``prunekit``.

    Args:
        pruner: A pruner of the Trainer's model or of a part of it.
        at: After which optimizer steps, or epochs, to prune; as many as the pruner has ``iterative_steps``.
        unit: What ``at`` counts.
        copies, regularizer, grow_every: As for `TrainingPruner`.

    Raises:
        ArgumentError: An argument is wrong.
    """

    def rebuild(self, checkpoint: str | os.PathLike[str]) -> None:
        """Brings a fresh model to the shapes of a checkpoint; call it before ``train(resume_from_checkpoint=...)``.

        Args:
            checkpoint: The folder of the checkpoint.

        Raises:
            CheckpointError: The folder holds no plan, or one for another model; nothing was changed.
        """
        self.training.load_state_dict(_read(Path(checkpoint)))

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Checks the model, and makes cuts that were due when the checkpoint was written."""
        if args.world_size > 1 or args.n_gpu > 1:
            raise ArgumentError(
                "The callback prunes in one process only.",
                why=f"world_size={args.world_size}, n_gpu={args.n_gpu}; wrappers such as DDP remember the old shapes",
                hint="train with one device, or stop, prune, and go on with the smaller model",
            )
        self._check_model(kwargs["model"])
        self._take([kwargs["optimizer"]])
        self._prune(state, state.global_step if self.unit == "steps" else int(state.epoch or 0))

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Adds what the regularizer adds to the gradients, after they were clipped."""
        self.training.regularize()

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Prunes, if a cut is due after this step; the gradients are still there, for criteria that need them."""
        if self.unit == "steps":
            self._prune(state, state.global_step + 1)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Prunes, if a cut is due after this epoch."""
        if self.unit == "epochs":
            self._prune(state, round(state.epoch or 0))

    def _prune(self, state: TrainerState, done: int) -> None:
        for event in self.training.after(done):
            state.log_history.append({**event.metrics(), "step": state.global_step, "epoch": state.epoch})

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Writes the plan into the folder of the checkpoint; the file appears whole or not at all."""
        if args.should_save:
            folder = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
            temporary = folder / f".{FILE}"
            temporary.write_text(json.dumps(self.training.state_dict()))
            os.replace(temporary, folder / FILE)


def plan_of(checkpoint: str | os.PathLike[str]) -> Plan:
    """Returns the plan in a checkpoint folder: ``plan_of(folder).apply(fresh)`` gives the shapes of its weights.

    Raises:
        CheckpointError: The folder holds no plan.
    """
    return Plan.from_json(_read(Path(checkpoint))["plan"])


def _read(folder: Path) -> dict[str, Any]:
    try:
        state = json.loads((folder / FILE).read_text())
    except FileNotFoundError as error:
        raise CheckpointError("The checkpoint holds no plan.", where=str(folder / FILE)) from error
    except ValueError as error:
        raise CheckpointError(
            "The state of the pruning is malformed.", where=str(folder / FILE), why=str(error)
        ) from error
    if not isinstance(state, dict) or "plan" not in state:
        raise CheckpointError("The state of the pruning is malformed.", where=str(folder / FILE))
    return state
