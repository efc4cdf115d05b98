"""Experience of PPO agents: rollouts that a policy collects, on devices or from simulators, cut into minibatches."""
