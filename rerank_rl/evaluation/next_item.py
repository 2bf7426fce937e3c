"""Judges next-item lists: Recall, NDCG and coverage, ranked among all items."""

from collections.abc import Mapping

import numpy as np

from rerank_rl.evaluation import judge, ranking

CUTS = (5, 10, 50)
LISTED = max(CUTS)  # Items of a list.
SELECT = "ndcg@10"


def worth(items: np.ndarray, target: np.ndarray) -> dict[str, np.ndarray]:
  """Recall and NDCG at every cut, one number a user.

  Args:
    items: i32[n, LISTED], best first, PAD where there are fewer.
    target: i32[n], the item that came next.

  Returns:
    {"recall@5": f64[n], ...}; one relevant item makes the ideal DCG 1.
  """
  hit = items == target[:, None]
  one = np.ones((len(hit), 1))
  out = {}
  for cut in CUTS:
    out[f"recall@{cut}"] = ranking.recall_at_k(hit[:, :cut], one[:, 0])
    out[f"ndcg@{cut}"] = ranking.ndcg_at_k(hit[:, :cut], one)
  return out


def judged(
  lists: Mapping[str, np.ndarray], target: np.ndarray, num_items: int
) -> dict[str, judge.Judgement]:
  """Judges every system's lists of the same n users.

  Args:
    lists: system -> i32[n, LISTED].
    target: i32[n].
    num_items: M.

  Returns:
    system -> {metric: f64[n], "coverage@10": float}; coverage is the share
    of the catalogue that is in some user's top ten.
  """
  every = np.arange(num_items)[None]
  return {
    system: {
      **worth(items, target),
      "coverage@10": ranking.coverage(items[:, :10], every),
    }
    for system, items in lists.items()
  }
