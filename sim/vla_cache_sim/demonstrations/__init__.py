"""Record labelled episodes: the expert labels every state, whoever drives the robot there.

Behaviour cloning from clean demonstrations alone teaches no recovery: the policy never saw the
states into which its own errors lead. So an episode starts from a random state, what the robot
executes is the expert's action plus noise, and what is stored is the expert's clean action there:

    a_t* = expert(s_t)             label
    a_t  = a_t* + n_t              executed, n_t = rho n_{t-1} + sqrt(1 - rho^2) sigma e_t
    s_{t+1} = simulator(s_t, a_t)

With a policy as the driver, a_t = policy(o_t) for random stretches, this is DAgger (Ross et al.
2011); the labels stay the expert's.
"""
