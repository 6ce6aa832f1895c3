"""The switch of all shortcuts of recording: ``PRUNEKIT_PLAIN=1`` takes none.

A shortcut is faster and says the same: fake tensors are copied instead of constructed, operations with a rule run on
meta tensors or aren't run at all, and the cycle collector is paused. A recording without them is the specification.
Groups, plans and reports are the same; train mode may count as another program, since a dropout that is switched off
hands its input on there and is like its input here.
"""

import os

PLAIN = os.environ.get("PRUNEKIT_PLAIN") == "1"
"""Whether none is taken; read when this is imported."""
