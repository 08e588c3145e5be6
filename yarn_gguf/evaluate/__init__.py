"""Evaluation of a model as it runs: what it predicts, and where in the context.

- `compare`, `passkey`, `tasks`: scalings compared by losses, by hidden numbers, by multiple-choice questions
- `requests`, `harness`: where the questions come from: files, or lm-evaluation-harness
- `search`: the advice of a scaling; `sweep`: one field of a scaling in several values
- `results`: measurements that are kept, so that an interrupted run continues
- `verify`, `verdict`, `logit_errors`, `reference`: a file against the checkpoint from which it was made
- `reading`: losses and log-likelihoods; `statistics`: estimates from them; `show`: tables, pictures, a page
"""
