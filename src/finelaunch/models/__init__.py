"""Models and tokenizers: pretrained ones by folder, package or hub name, and small ones built from a config."""
