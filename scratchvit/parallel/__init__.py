"""Several processes that train one model: communicators, and what they average."""
