"""Branches by what they add: how much of it there is, and how far it turns what it is added to."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from prunekit.plugin import AddedBranch, BranchGroup, Group, MeanOverRows


class RelativeEnergyImportance:
    """Branches matter if they add much to what is there: the mean of ``||q|| / ||p||`` over tokens or feature maps.

    ``p`` is what the branch ``q`` is added to. Where ``p`` is zero the quotient counts as one.
    """

    def __call__(self, group: Group) -> None:
        """Has nothing to say about the units of a group."""

    def branch(self, group: BranchGroup) -> MeanOverRows:
        """Returns what gathers the mean."""
        return MeanOverRows(_relative_energy)


class BlockInfluenceImportance:
    """Branches matter if the sum points elsewhere than without them: the mean of ``1 - cos(p, p + q)``.

    ``p`` is what the branch ``q`` is added to; the mean is over tokens or feature maps (Men et al., ShortGPT: Layers in
    Large Language Models are More Redundant Than You Expect, 2024, equation 1, for branches instead of blocks).
    """

    def __call__(self, group: Group) -> None:
        """Has nothing to say about the units of a group."""

    def branch(self, group: BranchGroup) -> MeanOverRows:
        """Returns what gathers the mean."""
        return MeanOverRows(_influence)


def _relative_energy(one: AddedBranch) -> torch.Tensor:
    added, rest = one.added.float().norm(dim=1), one.rest.float().norm(dim=1)
    return torch.where(rest > 0, added / rest, (added > 0).to(added))


def _influence(one: AddedBranch) -> torch.Tensor:
    rest, added = one.rest.float(), one.added.float()
    return 1 - F.cosine_similarity(rest, rest + added, dim=1)
