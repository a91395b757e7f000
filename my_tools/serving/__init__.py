"""The files that `web_demo.py` serves; the page itself is in `web_demo/`."""
