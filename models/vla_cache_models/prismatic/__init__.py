"""The OpenVLA family: two fused vision towers, a projector and a Llama decoder."""
