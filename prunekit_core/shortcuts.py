"""The switch of all shortcuts of recording: ``PRUNEKIT_PLAIN=1`` takes none.

A shortcut is faster and says the same: fake tensors are copied instead of constructed, operations with a rule run on
meta tensors or aren't run at all, and the cycle collector is paused. A recording without them is the specification.
"""

import os

PLAIN = os.environ.get("PRUNEKIT_PLAIN") == "1"
"""Whether none is taken; read when this is imported."""
