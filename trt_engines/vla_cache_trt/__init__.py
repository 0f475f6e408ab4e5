"""Engines: what can run the policy's decoder, and what each backend lacks on this machine.

Importing this module loads no engine; `vla_cache_trt.backends` looks for them lazily.
"""
