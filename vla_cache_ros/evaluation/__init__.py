"""Success that others can check: episodes in pairs, kept one by one, compared with intervals.

    spec   = (suite, task, initial state, arm, condition, seed)        which episode
    row    = run_episode(environment, policy, spec)                    what came of it
    store  = every row, durable, never run twice
    result = rates, paired differences, times                          what may be claimed

Knows the core alone: policies and simulators come in through factories, so that one process, a
crew of them and a cluster run the same code.
"""
