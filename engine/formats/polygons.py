"""Polygons: filling them as pycocotools does, and tracing the outlines of a label map's regions.

A polygon is (n, 2) float64 (x, y) in pixels, (0, 0) the upper left corner of the first pixel. An outline follows the
edges between pixels, and a hole is joined to it by a bridge, a line that is traversed in both directions. Such an
outline filled as pycocotools fills it gives exactly the region's pixels, so label maps survive polygon formats without
loss::

    for outline in outlines(label):
        outline.value, outline.points

Sources: ``rleFrPoly`` of pycocotools' ``maskApi.c``; outline following after Pavlidis, *Algorithms for Graphics and
Image Processing*, 1982, chapter 7, on the edges between pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import UsageError
from ...kernels.cpu.compiled import compiled


@dataclass(frozen=True)
class Outline:
    """One region of a label map: pixels of equal value that share edges."""

    value: int
    """The region's value, a class index or the ignore index."""
    area: int
    """Number of pixels."""
    points: NDArray[np.int64]
    """Corners (n, 2) int64 (x, y), holes included by bridges; the last corner joins the first."""

    @property
    def box(self) -> tuple[int, int, int, int]:
        """(x, y, width, height) in pixels."""
        (x0, y0), (x1, y1) = self.points.min(axis=0).tolist(), self.points.max(axis=0).tolist()
        return x0, y0, x1 - x0, y1 - y0


def runs_of_polygon(points: NDArray[Any], height: int, width: int) -> NDArray[np.int64]:
    """Fill a polygon (n, 2), or (2n,) as COCO writes it, as pycocotools does; parts outside the image are cut off.

    Returns runs (m, 2) int64, see :mod:`.rle`. Raises :class:`UsageError` for coordinates that are not finite numbers.
    """
    try:
        corners = np.ascontiguousarray(points, dtype=np.float64).reshape(-1, 2)
    except (ValueError, TypeError) as error:
        raise UsageError(f"a polygon is a list of x and y, got {str(points)[:60]}") from error
    # pycocotools computes with 32-bit integers
    if not (np.abs(corners) < 1e8).all():
        raise UsageError("a polygon has coordinates that are not finite numbers of pixels")
    if len(corners) < 3:
        return np.empty((0, 2), np.int64)
    edges = np.sort(_crossings(corners, height, width))
    if len(edges) % 2:
        edges = np.append(edges, height * width)
    runs = edges.reshape(-1, 2)
    return runs[runs[:, 0] < runs[:, 1]]


def outlines(label: NDArray[Any]) -> list[Outline]:
    """Trace every region of a label map (H, W) uint8 or uint16, in the order of their upper left pixels."""
    points, ends, values, areas = _trace(np.ascontiguousarray(label))
    return [
        Outline(int(value), int(area), points[start:end])
        for start, end, value, area in zip([0, *ends[:-1].tolist()], ends.tolist(), values, areas, strict=True)
    ]


@compiled()
def _crossings(corners, height, width):
    """Return the positions at which a polygon's boundary crosses the middle of a column, down the columns."""
    number = corners.shape[0]
    grid = np.empty((number + 1, 2), np.int64)
    for j in range(number):
        for axis in range(2):
            # towards zero, as a C cast does
            grid[j, axis] = np.int64(5.0 * corners[j, axis] + 0.5)
    grid[number] = grid[0]
    length = np.int64(0)
    for j in range(number):
        length += abs(grid[j + 1, 0] - grid[j, 0]) + 1
    positions = np.empty(length, np.int64)
    count = 0
    u0, v0, first = np.int64(0), np.int64(0), True
    for j in range(number):
        xs, ys, xe, ye = grid[j, 0], grid[j, 1], grid[j + 1, 0], grid[j + 1, 1]
        dx, dy = abs(xe - xs), abs(ye - ys)
        flip = (dx >= dy and xs > xe) or (dx < dy and ys > ye)
        if flip:
            xs, xe, ys, ye = xe, xs, ye, ys
        along_x = dx >= dy
        steps = dx if along_x else dy
        slope = 0.0
        if steps:
            slope = (ye - ys) / dx if along_x else (xe - xs) / dy
        for d in range(steps + 1):
            t = steps - d if flip else d
            if along_x:
                u, v = t + xs, np.int64(ys + slope * t + 0.5)
            else:
                v, u = t + ys, np.int64(xs + slope * t + 0.5)
            if not first and u != u0:
                column = u if u < u0 else u - 1
                # the upscaled column 5 x + 2 is the middle of column x
                if column >= 0 and (column - 2) % 5 == 0 and (column - 2) // 5 <= width - 1 and column >= 2:
                    y = (min(v, v0) + 0.5) / 5.0 - 0.5
                    y = np.ceil(min(max(y, 0.0), float(height)))
                    positions[count] = (column - 2) // 5 * height + np.int64(y)
                    count += 1
            u0, v0, first = u, v, False
    return positions[:count]


@compiled()
def _regions(label):
    """Number the regions of equal value whose pixels share edges, (H, W) int32, and count them."""
    height, width = label.shape
    region = np.empty((height, width), np.int32)
    parent = np.empty(height * width, np.int32)
    number = 0
    for y in range(height):
        for x in range(width):
            left = -1
            if x > 0 and label[y, x - 1] == label[y, x]:
                left = region[y, x - 1]
                while parent[left] != left:
                    parent[left] = parent[parent[left]]
                    left = parent[left]
            above = -1
            if y > 0 and label[y - 1, x] == label[y, x]:
                above = region[y - 1, x]
                while parent[above] != above:
                    parent[above] = parent[parent[above]]
                    above = parent[above]
            if left < 0 and above < 0:
                parent[number] = number
                region[y, x] = number
                number += 1
            elif left < 0 or above < 0:
                region[y, x] = max(left, above)
            else:
                root = min(left, above)
                parent[left] = root
                parent[above] = root
                region[y, x] = root
    names = np.full(number, -1, np.int32)
    count = 0
    for y in range(height):
        for x in range(width):
            root = region[y, x]
            while parent[root] != root:
                root = parent[root]
            if names[root] < 0:
                names[root] = count
                count += 1
            region[y, x] = names[root]
    return region, count


@compiled()
def _trace(label):
    """Return the corners of all outlines one after the other, their ends, and the value and area of each region."""
    height, width = label.shape
    region, num_regions = _regions(label)
    areas = np.zeros(num_regions, np.int64)
    values = np.zeros(num_regions, np.int64)
    num_edges = np.int64(0)
    for y in range(height):
        for x in range(width):
            own = region[y, x]
            areas[own] += 1
            values[own] = label[y, x]
            num_edges += y == 0 or region[y - 1, x] != own
            num_edges += y == height - 1 or region[y + 1, x] != own
            num_edges += x == 0 or region[y, x - 1] != own
            num_edges += x == width - 1 or region[y, x + 1] != own
    # A node is the end of an edge; rings are linked lists of nodes. Two more nodes for every bridge.
    room = 2 * num_edges + 2
    node_x = np.empty(room, np.int32)
    node_y = np.empty(room, np.int32)
    following = np.empty(room, np.int64)
    count = np.int64(0)
    first_node = np.full(num_regions, -1, np.int64)
    # the node at the upper end of each pixel's left edge, the edge's ring, and whether the upper edge was traversed
    upper_left = np.full((height, width), -1, np.int64)
    walked = np.zeros((height, width), np.bool_)
    # the hole's node at the upper end of its first vertical edge, and that edge's pixel
    hole_node = np.empty(num_edges // 4 + 1, np.int64)
    hole_x = np.empty(num_edges // 4 + 1, np.int32)
    hole_y = np.empty(num_edges // 4 + 1, np.int32)
    num_holes = 0
    step_x = np.array([1, 0, -1, 0])
    step_y = np.array([0, 1, 0, -1])
    for start_y in range(height):
        for start_x in range(width):
            own = region[start_y, start_x]
            if walked[start_y, start_x] or (start_y > 0 and region[start_y - 1, start_x] == own):
                continue
            # A ring, the region on its right hand, starts along the upper edge of this pixel.
            x, y, heading = start_x, start_y, 0
            begin = count
            outer = first_node[own] < 0
            best_node, best_x, best_y = np.int64(-1), np.int64(width + 1), np.int64(0)
            while True:
                # the pixel on the right hand of the edge from (x, y)
                pixel_x = x - (heading == 1 or heading == 2)
                pixel_y = y - (heading == 2 or heading == 3)
                if heading == 0:
                    walked[pixel_y, pixel_x] = True
                x, y = x + step_x[heading], y + step_y[heading]
                node_x[count], node_y[count], following[count] = x, y, count + 1
                if heading == 3:
                    upper_left[pixel_y, pixel_x] = count
                if heading == 1 and x < best_x:
                    # a hole's leftmost edge runs down, the region on its left side in the picture
                    best_x, best_y, best_node = x, y - 1, count - 1
                count += 1
                ahead_x = pixel_x + step_x[heading]
                ahead_y = pixel_y + step_y[heading]
                side_x = ahead_x - step_x[(heading + 1) & 3]
                side_y = ahead_y - step_y[(heading + 1) & 3]
                inside = 0 <= ahead_x < width and 0 <= ahead_y < height and region[ahead_y, ahead_x] == own
                if not inside:
                    heading = (heading + 1) & 3
                elif 0 <= side_x < width and 0 <= side_y < height and region[side_y, side_x] == own:
                    heading = (heading + 3) & 3
                if x == start_x and y == start_y and heading == 0:
                    break
            following[count - 1] = begin
            if outer:
                first_node[own] = begin
            else:
                hole_node[num_holes] = begin if best_node < begin else best_node
                hole_x[num_holes], hole_y[num_holes] = best_x, best_y
                if best_node < begin:
                    hole_node[num_holes] = count - 1
                num_holes += 1
    order = np.argsort(hole_x[:num_holes], kind="mergesort")
    for i in order:
        # A bridge runs left from the hole's upper left corner, inside the region, to an edge that was joined before.
        y, x = np.int64(hole_y[i]), np.int64(hole_x[i]) - 1
        own = region[y, x]
        while x > 0 and region[y, x - 1] == own:
            x -= 1
        target, hole = upper_left[y, x], hole_node[i]
        back_hole, back_target = count, count + 1
        node_x[back_hole], node_y[back_hole] = node_x[hole], node_y[hole]
        node_x[back_target], node_y[back_target] = node_x[target], node_y[target]
        count += 2
        # target → hole → … round the hole … → back_hole → back_target → what followed the target
        following[back_target] = following[target]
        following[target] = back_hole
        following[back_hole] = following[hole]
        following[hole] = back_target
    points = np.empty((count, 2), np.int64)
    ends = np.empty(num_regions, np.int64)
    num_points = np.int64(0)
    for own in range(num_regions):
        first = first_node[own]
        node = first
        before_x, before_y = np.int64(node_x[first]), np.int64(node_y[first])
        # the node before the first decides whether the first is a corner
        last = first
        while following[last] != first:
            last = following[last]
        before_x, before_y = np.int64(node_x[last]), np.int64(node_y[last])
        while True:
            after = following[node]
            x, y = np.int64(node_x[node]), np.int64(node_y[node])
            ax, ay = np.int64(node_x[after]), np.int64(node_y[after])
            if np.sign(x - before_x) != np.sign(ax - x) or np.sign(y - before_y) != np.sign(ay - y):
                points[num_points, 0], points[num_points, 1] = x, y
                num_points += 1
            before_x, before_y = x, y
            node = after
            if node == first:
                break
        ends[own] = num_points
    return points[:num_points], ends, values, areas
