"""Work that files describe: jaxq's own jobs and POT's, read, checked and run."""
