"""Point-goal navigation, after Anderson et al., "On Evaluation of Embodied Navigation Agents" (arXiv:1807.06757).

An agent with a pose in a map of free and occupied cells is given a goal, and must stop near it. The modules build on
each other in this order:

- ``geodesic``: lengths of shortest paths.
- ``rays``: how far it is to the next wall.
- ``rules``: one agent in one episode: what an action does, what the agent sees, and how it is scored.
- ``maps``: rooms and corridors, made from a seed.
- ``episodes``: starts and goals on such maps, made beforehand.
- ``batches``: many agents at once, each of which goes on with another episode when one ends.
- ``agents``: agents that do not learn: an oracle, one that goes straight, one that draws its actions.
- ``trials``: agents on given episodes, an episode each, and their scores.
- ``rendering``: pictures of them.

Coordinates are in metres: x along the columns of a map, y along its rows. A heading is in radians, from x towards y.
"""
