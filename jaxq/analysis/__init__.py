"""Looking at models: verification layer by layer, metrics, what a model holds, findings of the linter, pages."""
