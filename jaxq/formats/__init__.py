"""Configuration files as other tools have them, read into jaxq's own `jaxq.config.Job`."""
