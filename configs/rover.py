"""ROVER (arXiv 2509.24981): the uniform policy's values as log-ratios.

  python -m launch.train --config=configs/rover.py --workdir=DIR

No critic, no reference policy, no clipping: log pi - log pi_old is regressed
to the leaf's advantage plus the mean of the next state's log-ratios. The
theorem behind it holds for binary rewards alone; here the reward is graded.
Each batch is fitted in several steps: the first is REINFORCE's, which makes
what is likely likelier still; later ones let go of what has reached its target,
and so keep slates that are as good but rarer.

`configs/rover.py:oracle,good --config.rl_train.steps=100
--config.rl_train.eval_every=50` takes less than two minutes. To expect there:
4.1 to 4.7 distinct good slates among 256 samples, four to five times what the
group's objective keeps (three seeds). Variants: see README.md.
"""

from configs import common

CHANGES = {
  "name": "rover",
  "rl.credit": "centred",
  "rl.objective": "uniform_q",
  "rl.epochs": 8,
  "rl.kl": 0.0,
  "rl.entropy": 0.0,
}


def get_config(variant: str = ""):
  """The default world, 50 -> 6."""
  return common.build(CHANGES, variant)
