"""Criteria, schedules, regularizers, pruners, allocators, compensators, weights and commands."""

import contextlib

import torch
from torch import nn

from prunekit import plugin


def scores(group):
    return torch.arange(1.0, group.size() + 1)


class Raises:
    def __call__(self, group):
        return scores(group)[group.size() + 1]  # raises


class Unmade:
    def __init__(self):
        self.power = {}["p"]  # unmade


def no_criterion():
    return 3


def criterion(score):
    return lambda: score


def short(group):
    return scores(group)[:-1]


def nan(group):
    return scores(group) / (scores(group) - 1).clamp(max=0)


def mask(group):
    return scores(group) > 2


def complex_scores(group):
    return scores(group) * 1j


def listed(group):
    return scores(group).tolist()


def halves(group):
    for view in group.views():
        view.tensor.data.mul_(0.5)  # halves
    return scores(group)


def hides(group):
    for view in group.views():
        with contextlib.suppress(Exception):
            view.tensor.detach().mul_(0)  # hides
    return scores(group)


def freezes(group):
    for view in group.views():
        view.tensor.requires_grad_(False)
    return scores(group)


def exchanges(group):
    for view in group.views():
        view.tensor.data = torch.zeros_like(view.tensor)
    return scores(group)


def renames(group):
    for view in group.views():
        view.module.weight = nn.Parameter(view.module.weight.detach() * 2)
    return scores(group)


def hooks(group):
    group.views()[0].module.register_forward_hook(lambda module, args, output: output * 2)
    return scores(group)


class Needs:
    statistics = None

    def __call__(self, group):
        return scores(group)


class NeedsMoment(Needs):
    needs = ("moment",)


class NeedsText(Needs):
    needs = "moments"


class NeedsFisher(Needs):
    needs = ("fisher",)


class NeedsInVain:
    needs = ("moments",)

    def __call__(self, group):
        return scores(group) if self.statistics else None


@plugin.hookimpl
def prunekit_importance():
    functions = (short, nan, mask, complex_scores, listed, halves, hides, freezes, exchanges, renames, hooks)
    return {
        "raises": Raises,
        "unmade": Unmade,
        "no_criterion": no_criterion,
        "needs_moment": NeedsMoment,
        "needs_text": NeedsText,
        "needs_fisher": NeedsFisher,
        "needs_in_vain": NeedsInVain,
        **{function.__name__: criterion(function) for function in functions},
    }


def late(ratio, steps):
    return [ratio / (steps - steps)]  # late


def descending(ratio, steps):
    return [ratio - step for step in range(steps + 1)]


def short_of_it(ratio, steps):
    return [step / 10 for step in range(steps + 1)]


@plugin.hookimpl
def prunekit_schedules():
    return {"late": late, "descending": descending, "short_of_it": short_of_it}


class Pushes:
    def __init__(self, groups):
        self.groups = groups

    def regularize(self):
        raise LookupError("no gradients like these")  # pushes


@plugin.hookimpl
def prunekit_regularizers():
    return {"pushes": Pushes}


class Stubborn:
    def __init__(self, model, example_inputs):
        raise ValueError("won't")  # stubborn


@plugin.hookimpl
def prunekit_pruners():
    return {"stubborn": Stubborn}


def lost(problem):
    return problem.options[0]  # lost


def beyond(problem):
    return [99 for choice in problem.choices]


def halfway(problem):
    return [0.5 for choice in problem.choices]


def greedy_for_nothing(problem):
    return [0 for choice in problem.choices]


@plugin.hookimpl
def prunekit_allocators():
    return {"lost": lost, "beyond": beyond, "halfway": halfway, "greedy_for_nothing": greedy_for_nothing}


def failing(repair):
    repair.fix()  # failing


def scribbles(repair):
    for parameter in repair.module.parameters():
        parameter.data.zero_()  # scribbles


def spoils(repair):
    repair.write("2.bias", torch.full((3,), float("nan")))


def worsens(repair):
    repair.write("2.bias", torch.full((3,), 100.0))


def compensator(function):
    return lambda: function


@plugin.hookimpl
def prunekit_compensators():
    functions = (failing, scribbles, spoils, worsens)
    return {"none": dict, **{function.__name__: compensator(function) for function in functions}}


@plugin.hookimpl
def prunekit_weights():
    return {"unread": Unread, "garbled": Garbled}


class Unread:
    def __init__(self, path, model):
        raise OSError("no such disk")  # unread


class Garbled:
    def __init__(self, path, model):
        pass

    def __contains__(self, name):
        return True

    def read(self, name, plan):
        return [0.0]


def greet():
    """Greet."""
    return [][0]  # greet


@plugin.hookimpl
def prunekit_commands():
    return {"greet": greet}
