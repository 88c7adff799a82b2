"""Every op of the suite's table, by CUDA kernels where there are some."""

from typing import Any

import numpy as np
import pytest

from tests.cases import CASES
from tests.cases.case import Case
from tests.support import cuda_kernels

pytestmark = pytest.mark.usefixtures("cuda")


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_op(case: Case, dtype: Any) -> None:
    cuda_kernels.check(case.ours, case.make(dtype))
