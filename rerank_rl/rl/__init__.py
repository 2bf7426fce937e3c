"""Credit, objectives and the learner: one function, one equation."""
