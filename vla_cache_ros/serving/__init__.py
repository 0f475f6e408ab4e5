"""The policy over the network, in the protocols that other people's harnesses speak.

Knows the core alone: policies come in through a factory, one per connection, so that every robot
has a cache of its own.
"""
