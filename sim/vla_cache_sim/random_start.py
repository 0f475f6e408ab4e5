def randomize_start(env, rng, spread):
    pass
