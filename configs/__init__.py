"""One file a published method; `common` holds what they share."""
