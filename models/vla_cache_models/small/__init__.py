"""The small VLA: OpenVLA-OFT's shape at 3 million parameters, trained here."""
