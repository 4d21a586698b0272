"""From checkpoints to scores: what was trained is rebuilt, answers, and is judged."""
