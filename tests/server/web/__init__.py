"""The page, in real Chromium against the real server with the built-in model."""
