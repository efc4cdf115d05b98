"""The same in the slowest and plainest way: paths by Dijkstra's algorithm, rays in tiny steps."""

import heapq
import math

import numpy as np


def map_of(text):
    """bool [rows, columns] from lines of # and .; the first line is row 0."""
    return np.array([[letter == "#" for letter in line.strip()] for line in text.strip().splitlines()])


def distances(occupied, goal):
    """Lengths of the shortest paths in cells."""
    rows, columns = occupied.shape
    found = np.full(occupied.shape, np.inf)
    queue = [(0.0, tuple(map(int, goal)))]
    while queue:
        length, (row, column) = heapq.heappop(queue)
        if length >= found[row, column]:
            continue
        found[row, column] = length
        for dy in (-1, 0, 1):
            for dx in (-1, 0, 1):
                y, x = row + dy, column + dx
                if not (0 <= y < rows and 0 <= x < columns) or occupied[y, x]:
                    continue
                if dx and dy and (occupied[row, x] or occupied[y, column]):
                    continue
                heapq.heappush(queue, (length + math.hypot(dx, dy), (y, x)))
    return found


def distance_at(occupied, goal, point):
    """From a point straight to one of the nine cells around it, but by no corner, and on."""
    column, row = map(math.floor, point)
    found = []
    for y in range(row - 1, row + 2):
        for x in range(column - 1, column + 2):
            if occupied[y, x] or (y != row and x != column and (occupied[row, x] or occupied[y, column])):
                continue
            found.append(math.dist(point, (x + 0.5, y + 0.5)) + distances(occupied, goal)[y, x])
    return min(found)


def depth(occupied, position, angle, limit, step=1e-3):
    """How far a point gets in tiny steps before it is in an occupied cell."""
    for length in np.arange(0, limit, step):
        x, y = position[0] + length * math.cos(angle), position[1] + length * math.sin(angle)
        if occupied[math.floor(y), math.floor(x)]:
            return length
    return limit
