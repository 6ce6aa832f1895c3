"""A pytest plugin: registries that hold what a test says and nothing else.

It is switched on with ``pytest_plugins = ["prunekit.testing.pytest_plugin"]`` in the top-level ``conftest.py``. It
has no entry point of its own, because pytest would import it, and torch with it, at every start.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib import metadata

import pytest

from prunekit_core.plugins.entries import BLOCK_VARIABLE
from prunekit_core.plugins.registry import BUILT_IN, ENTRY_POINT_GROUP, Registry

MakeRegistry = Callable[..., Registry]


@pytest.fixture
def prunekit_registry(monkeypatch: pytest.MonkeyPatch) -> MakeRegistry:
    """Makes isolated registries: ``prunekit_registry(*plugins, block=())``.

    Args of the function:
        plugins: Modules or objects with ``hookimpl`` functions, or names of installed distributions with entry points.
        block: Plugins to leave out, built-in ones among them.

    Besides these plugins the registry holds the built-in ones. Other installed plugins and ``PRUNEKIT_BLOCK`` don't
    count. A plugin that can't be loaded fails the test; whatever else is wrong with it is the `PluginError` of
    `Registry`.
    """
    monkeypatch.delenv(BLOCK_VARIABLE, raising=False)
    return _make


def _make(*plugins: object, block: Iterable[str] = ()) -> Registry:
    wanted = {BUILT_IN, *(plugin for plugin in plugins if isinstance(plugin, str))}
    installed = {point.dist.name for point in metadata.entry_points(group=ENTRY_POINT_GROUP) if point.dist}
    absent = wanted - installed - {BUILT_IN}
    if absent:
        raise AssertionError(
            f"no entry points of group {ENTRY_POINT_GROUP!r} are installed by {', '.join(sorted(absent))}"
        )
    extra = {_name(plugin, place): plugin for place, plugin in enumerate(plugins) if not isinstance(plugin, str)}
    registry = Registry(block=(*block, *sorted(installed - wanted)), extra=extra)
    broken = [f"{plugin.name} can't be loaded: {plugin.error}" for plugin in registry.plugins() if plugin.error]
    if broken:  # no assert statement, which pytest would add the whole expression to
        raise AssertionError("\n".join(broken))
    return registry


def _name(plugin: object, place: int) -> str:
    return f"{getattr(plugin, '__name__', type(plugin).__name__)}#{place}"
