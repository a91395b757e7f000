"""The files that `web_demo.py` serves. The sources of the page are in `web_demo/`."""
