"""The graph as a robot runs it, a process per node: started, watched, broken, judged."""
