"""One spec from labels to an engine: the stages, which of them are done, and doing the others."""
