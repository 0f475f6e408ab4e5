"""The demo's report: overlay, video, charts, metrics and the page that holds them."""
