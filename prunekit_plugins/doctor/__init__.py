"""A doctor: why a pruned model isn't as much faster as it has fewer multiply-accumulates, and what to change."""

from prunekit_plugins.doctor.examination import diagnose, examine
from prunekit_plugins.doctor.facts import Disease, Facts, Finding, LayerFacts
from prunekit_plugins.doctor.findings import find

__all__ = ["Disease", "Facts", "Finding", "LayerFacts", "diagnose", "examine", "find"]
