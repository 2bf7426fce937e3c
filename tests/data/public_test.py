"""Features of any scale are standardised; what says nothing is dropped."""

import numpy as np
import pytest

from rerank_rl.data import public


@pytest.mark.parametrize("constant", (0.1, 19.99, 1.65e9, 0.0))
@pytest.mark.parametrize("scale", (1e-30, 5e-7, 1.0, 1e30))
def test_constant_columns_alone_are_dropped(constant, scale):
  random = np.random.default_rng(0)
  varies = scale * random.normal(size=2000)
  x = np.c_[np.full(2000, constant), varies].astype(np.float32)
  out = public.standardise(x)
  assert out.shape == (2000, 1) and out.dtype == np.float32
  np.testing.assert_allclose(out.mean(), 0, atol=1e-6)
  np.testing.assert_allclose(out.std(), 1, rtol=1e-6)
