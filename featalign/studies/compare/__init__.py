"""`compare`: in which basis do networks agree, and what does each way of fusing them cost?

`run.compare` takes modules, `run.run` a `config.RunConfig` and a shipped data set; both return a
`result.CompareResult`. A figure of one's own on the page is a function under `figures.figure`.
"""
