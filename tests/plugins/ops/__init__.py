import pytest

pytest.register_assert_rewrite("tests.plugins.ops.cases")
