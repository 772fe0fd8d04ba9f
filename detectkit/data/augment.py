"""From decoded images to what the network sees, for a whole batch at once, on the device.

Preprocessing and spatial augmentation are one 3x3 matrix an image, colour augmentation is one 4x4 matrix: pixels are
resampled once and coloured once. Letters in shape comments: B images, c channels, H W pixels, N boxes.

Column vectors: a point [x, y, 1] goes to M @ [x, y, 1], a pixel [r, g, b, 1] to K @ [r, g, b, 1]. Pixel (i, j) has its
centre at (i + 0.5, j + 0.5).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from detectkit.data.batch import Batch, has_crop
from detectkit.ops import boxes as box_ops
from detectkit.spec import AugmentationConfig

DRAWS = 13  # random numbers an image: see spatial_matrices and color_matrices
LUMA = [[0.299] * 3, [0.587] * 3, [0.114] * 3]
SATURATION = [[0.701, -0.299, -0.299], [-0.587, 0.413, -0.587], [-0.114, -0.114, 0.886]]
HUE = [[0.168, -0.328, 1.25], [0.330, 0.035, -1.05], [-0.497, 0.292, -0.203]]


class Labels(NamedTuple):
    """Labelled boxes of a batch, inside the image, never empty."""

    boxes: Tensor  # float32 [N, 4] x1 y1 x2 y2 in network pixels
    classes: Tensor  # int64 [N], see `detectkit.data.labels.Objects`
    image_index: Tensor  # int64 [N], which of the B images a box is in
    names: list[str]  # N names as in the records


class Prepared(NamedTuple):
    """A batch as the network takes it."""

    images: Tensor  # float32 [B, c, H, W] in [0, 1]
    labels: Labels  # of target classes
    others: Labels  # of none: BACKGROUND and DONTCARE
    weights: Tensor  # float32 [B], source_weight
    matrices: Tensor  # float32 [B, 3, 3], original pixels to network pixels


def prepare(
    batch: Batch, config: AugmentationConfig, *, generator: torch.Generator | None, device: torch.device | str
) -> Prepared:
    """Bring a batch to the network's size, with augmentation when a (CPU) `generator` is given, without when None.

    The same generator state gives the same result. Boxes follow the pixels: each becomes the box that encloses its
    four transformed corners, is clipped to the image, and is dropped when empty or below `min_bbox_width` or
    `min_bbox_height`.
    """
    pre = config.preprocessing
    width, height = pre.output_image_width, pre.output_image_height
    matrices, regions = preprocessing_matrices(batch.original_sizes.double(), pre)
    colors = None
    if generator is not None:
        draws = torch.rand(len(matrices), DRAWS, dtype=torch.float64, generator=generator)
        spatial = spatial_matrices(draws[:, :9], config.spatial_augmentation, width=width, height=height)
        matrices = spatial @ matrices
        colors = color_matrices(draws[:, 9:], config.color_augmentation)
    scale = batch.sizes.double() / batch.original_sizes.double()  # decoders may have reduced the image
    inverse = _scaling(scale) @ torch.linalg.inv(matrices)
    images = warp(
        batch.images.to(device, non_blocking=True),
        inverse,
        regions=regions * scale.repeat(1, 2),
        width=width,
        height=height,
    )
    images = _color(images, colors)
    boxes, kept = _move_boxes(batch, matrices, regions, pre)
    is_target = batch.classes >= 0
    return Prepared(
        images=images,
        labels=_labels(batch, boxes, kept & is_target, device),
        others=_labels(batch, boxes, kept & ~is_target, device),
        weights=batch.weights.to(device),
        matrices=matrices.float().to(device),
    )


def preprocessing_matrices(sizes: Tensor, pre: AugmentationConfig.Preprocessing) -> tuple[Tensor, Tensor]:
    """What brings images of `sizes` [B, 2] (width, height) to the network's size, without any chance.

    `scale_width`/`scale_height` scale the image, the crop rectangle cuts from the scaled image, and the rest is
    resized to the output size (`enable_auto_resize`) or anchored at the top left corner.

    Returns:
        matrices [B, 3, 3], original to network pixels, and regions [B, 4], the rectangle x1 y1 x2 y2 of original
        pixels that may be seen.
    """
    factors = torch.tensor([pre.scale_width or 1.0, pre.scale_height or 1.0], dtype=sizes.dtype)
    regions = torch.cat([torch.zeros_like(sizes), sizes * factors], dim=1)
    if has_crop(pre):
        left_top, right_bottom = (pre.crop_left, pre.crop_top), (pre.crop_right, pre.crop_bottom)
        rectangle = torch.tensor([*left_top, *right_bottom], dtype=sizes.dtype)
        regions = torch.cat([rectangle[:2].expand_as(sizes), regions[:, 2:].minimum(rectangle[2:])], dim=1)
    matrices = _translation(-regions[:, :2]) @ _scaling(factors.expand_as(sizes))
    if pre.enable_auto_resize:
        output = torch.tensor([pre.output_image_width, pre.output_image_height], dtype=sizes.dtype)
        matrices = _scaling(output / (regions[:, 2:] - regions[:, :2]).clamp(min=1)) @ matrices
    return matrices, regions / factors.repeat(2)


def spatial_matrices(
    draws: Tensor, spatial: AugmentationConfig.SpatialAugmentation, *, width: int, height: int
) -> Tensor:
    """Random flips, translation, zoom and rotation, in this order, on a width x height canvas.

    Args:
        draws: [B, 9] uniform in [0, 1): the chances of a horizontal flip and a vertical flip, translation x and y,
            zoom ratio, zoom position x and y, the chance of a rotation and its angle.

    Returns:
        [B, 3, 3] in network pixels. A zoom ratio above 1 magnifies; the part that stays visible is anywhere in the
        image. Translations are whole pixels. Rotation is about the centre, in radians, either way.
    """
    hflip, vflip, shift_x, shift_y, zoom, zoom_x, zoom_y, chance, angle = draws.unbind(1)
    canvas = torch.tensor([width, height], dtype=draws.dtype)
    flips = torch.stack([hflip < spatial.hflip_probability, vflip < spatial.vflip_probability], dim=1)
    matrices = _translation(flips * canvas) @ _scaling(1 - 2 * flips.to(draws.dtype))
    limit = torch.tensor([int(spatial.translate_max_x), int(spatial.translate_max_y)], dtype=draws.dtype)
    shift = torch.floor(torch.stack([shift_x, shift_y], dim=1) * (2 * limit + 1)) - limit
    matrices = _translation(shift) @ matrices
    ratio = (spatial.zoom_min + zoom * (spatial.zoom_max - spatial.zoom_min))[:, None]
    corner = torch.stack([zoom_x, zoom_y], dim=1) * (canvas - canvas / ratio)
    matrices = _scaling(ratio.expand_as(corner)) @ _translation(-corner) @ matrices
    radians = (2 * angle - 1) * spatial.rotate_rad_max * (chance < spatial.rotate_probability)
    center = (canvas / 2).expand_as(corner)
    return _translation(center) @ _rotation(radians) @ _translation(-center) @ matrices


def color_matrices(draws: Tensor, color: AugmentationConfig.ColorAugmentation) -> Tensor | None:
    """Random contrast, then hue and saturation, then brightness (one offset for all channels).

    Args:
        draws: [B, 4] uniform in [0, 1): hue, saturation, contrast, brightness. Saturation is uniform, the others are
            normal, cut at two standard deviations (hue and contrast: at the maximum in the spec).

    Returns:
        [B, 4, 4] for pixels in [0, 1], or None where the spec changes no colours.
    """
    if not any(
        (
            color.color_shift_stddev,
            color.hue_rotation_max,
            color.saturation_shift_max,
            color.contrast_scale_max,
        )
    ):
        return None
    hue, saturation, contrast, brightness = draws.unbind(1)
    degrees = _truncated_normal(hue) * color.hue_rotation_max / 2
    factor = 1 + (2 * saturation - 1) * color.saturation_shift_max
    matrices = hue_saturation(degrees, factor) @ contrast_matrices(
        _truncated_normal(contrast) * color.contrast_scale_max / 2, center=color.contrast_center
    )
    matrices[:, :3, 3] += (_truncated_normal(brightness) * color.color_shift_stddev)[:, None]
    return matrices


def hue_saturation(degrees: Tensor, saturation: Tensor) -> Tensor:
    """[B, 4, 4]: rotate the hue by `degrees` [B] and scale the saturation [B]; 0 and 1 change nothing."""
    luma, base, turn = (torch.tensor(rows, dtype=degrees.dtype).T for rows in (LUMA, SATURATION, HUE))
    radians = torch.deg2rad(degrees)[:, None, None]
    matrices = torch.eye(4, dtype=degrees.dtype).repeat(len(degrees), 1, 1)
    amount = saturation[:, None, None]
    matrices[:, :3, :3] = luma + amount * torch.cos(radians) * base + amount * torch.sin(radians) * turn
    return matrices


def contrast_matrices(contrast: Tensor, *, center: float) -> Tensor:
    """[B, 4, 4]: v -> v (1 + c) - c center, for contrast c [B]; 0 changes nothing."""
    matrices = torch.eye(4, dtype=contrast.dtype).repeat(len(contrast), 1, 1)
    matrices[:, :3, :3] *= (1 + contrast)[:, None, None]
    matrices[:, :3, 3] = -center * contrast[:, None]
    return matrices


def warp(images: Tensor, inverse: Tensor, *, regions: Tensor, width: int, height: int) -> Tensor:
    """Resample uint8 images [B, c, h, w] to float32 [B, c, height, width] in [0, 255], 0 where there is no image.

    Bilinear at pixel centres; the edge pixels of an image reach to its edge. Images that only move by whole pixels or
    flip are copied exactly.

    Args:
        inverse: float64 [B, 3, 3] on the CPU, output pixels to image pixels (affine).
        regions: float64 [B, 4] on the CPU, the rectangle x1 y1 x2 y2 of image pixels that may be seen.
    """
    exact = _moves_whole_pixels(inverse, regions)
    if not exact.any():
        return _resample(images.float(), inverse, regions=regions, width=width, height=height)
    output = images.new_zeros((len(images), images.shape[1], height, width), dtype=torch.float32)
    for index in exact.nonzero().flatten().tolist():
        _copy(images[index], output[index], inverse[index], region=regions[index])
    rest = (~exact).nonzero().flatten()
    if len(rest):
        chosen = images[rest.to(images.device)].float()
        output[rest.to(images.device)] = _resample(
            chosen, inverse[rest], regions=regions[rest], width=width, height=height
        )
    return output


def _resample(images: Tensor, inverse: Tensor, *, regions: Tensor, width: int, height: int) -> Tensor:
    x = torch.arange(width, device=images.device) + 0.5  # [W]
    y = torch.arange(height, device=images.device) + 0.5  # [H]
    size = torch.tensor([images.shape[3], images.shape[2]], dtype=inverse.dtype)
    to_unit = inverse[:, :2] * (2 / size)[:, None]  # grid_sample counts pixels from -1 to 1
    to_unit[:, :, 2] -= 1
    rows = to_unit.to(images.device, torch.float32)[..., None, None]  # [B, 2, 3, 1, 1]
    grid = torch.empty([len(images), height, width, 2], device=images.device)
    for axis in (0, 1):  # a column and a row of sums, not a product of matrices over all pixels
        along_x, along_y = rows[:, axis, 0] * x, rows[:, axis, 1] * y[:, None] + rows[:, axis, 2]
        torch.add(along_x, along_y, out=grid[..., axis])
    output = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    if _sees_background(inverse, regions, width=width, height=height):
        start, end = (
            edge.to(images.device, torch.float32)[..., None] for edge in _visible(inverse, regions, height)
        )
        output.masked_fill_(((x < start) | (x > end))[:, None], 0.0)
    return output


def _visible(inverse: Tensor, regions: Tensor, height: int) -> tuple[Tensor, Tensor]:
    """From which x to which x every output row shows its image: two [B, H].

    The region is a parallelogram in the output, and what a row shows of it is one interval (reversed when empty).
    """
    y = torch.arange(height, dtype=inverse.dtype) + 0.5
    start = torch.full([len(inverse), height], -torch.inf, dtype=inverse.dtype)
    end = -start
    for axis in (0, 1):
        slope = inverse[:, axis, :1]  # how fast this source coordinate grows along a row, [B, 1]
        slope = torch.where(slope.abs() < 1e-9, 1e-9, slope)
        at_zero = inverse[:, axis, 1:2] * y + inverse[:, axis, 2:]
        ends = ((regions[:, axis, None] - at_zero) / slope, (regions[:, axis + 2, None] - at_zero) / slope)
        start, end = start.maximum(torch.minimum(*ends)), end.minimum(torch.maximum(*ends))
    return start, end


def _copy(image: Tensor, output: Tensor, inverse: Tensor, *, region: Tensor) -> None:
    """Write the part of `image` [c, h, w] that lands on `output` [c, H, W]; whole-pixel moves and flips only."""
    targets, sources, flipped = [], [], []
    for axis, length in ((1, output.shape[1]), (0, output.shape[2])):  # rows, then columns
        sign, offset = int(inverse[axis, axis].round()), int(inverse[axis, 2].round())
        first, last = int(region[axis].round()), int(region[axis + 2].round())
        ends = sorted(
            (sign * (first - offset), sign * (last - offset))
        )  # where the region lies in the output
        start, stop = max(ends[0], 0), min(ends[1], length)
        if start >= stop:
            return
        targets.append(slice(start, stop))
        source = sorted((sign * start + offset, sign * stop + offset))
        sources.append(slice(source[0], source[1]))
        if sign < 0:
            flipped.append(2 - axis)  # x is the last dimension
    part = image[:, sources[0], sources[1]]
    output[:, targets[0], targets[1]] = part.flip(flipped) if flipped else part


def _moves_whole_pixels(inverse: Tensor, regions: Tensor) -> Tensor:
    """[B] bool: the matrix only flips and moves by whole pixels, and the region ends on whole pixels."""
    linear = inverse[:, :2, :2]
    signs = torch.diag_embed(torch.diagonal(linear, dim1=1, dim2=2).sign())
    unit = ((linear - signs).abs() < 1e-9).all(dim=(1, 2)) & (signs.abs().sum(dim=(1, 2)) == 2)
    numbers = torch.cat([inverse[:, :2, 2], regions], dim=1)
    return unit & ((numbers - numbers.round()).abs() < 1e-6).all(dim=1)


def _sees_background(inverse: Tensor, regions: Tensor, *, width: int, height: int) -> bool:
    """Whether any pixel centre of the output lies outside its image's region (it is enough to ask the corners)."""
    x, y = (0.5, width - 0.5), (0.5, height - 0.5)
    corners = torch.tensor(
        [[x[0], x[1], x[0], x[1]], [y[0], y[0], y[1], y[1]], [1.0] * 4], dtype=inverse.dtype
    )
    points = (inverse @ corners)[:, :2]  # [B, 2, 4]
    return bool(((points < regions[:, :2, None]) | (points > regions[:, 2:, None])).any())


def _color(images: Tensor, matrices: Tensor | None) -> Tensor:
    """Scale images [B, c, H, W] from [0, 255] to [0, 1] and apply colour matrices [B, 4, 4].

    Grey images take contrast and brightness: hue and saturation leave grey as it is.
    """
    if matrices is None:
        return images.div_(255)
    matrices = matrices.to(images.device, torch.float32)
    if images.shape[1] == 1:
        gain, offset = matrices[:, :1, :3].sum(dim=2), matrices[:, :1, 3]
        return images.mul_(gain[:, :, None, None] / 255).add_(offset[:, :, None, None]).clamp_(0, 1)
    pixels = torch.baddbmm(matrices[:, :3, 3:], matrices[:, :3, :3] / 255, images.flatten(2))
    return pixels.clamp_(0, 1).view_as(images)


def _move_boxes(
    batch: Batch, matrices: Tensor, regions: Tensor, pre: AugmentationConfig.Preprocessing
) -> tuple[Tensor, Tensor]:
    """The batch's boxes [N, 4] in network pixels, and which of them remain ([N] bool)."""
    visible = regions[batch.image_index]
    boxes = batch.boxes.double()
    corners = torch.stack([boxes[:, :2], boxes[:, 2:]], dim=1)  # [N, 2, 2]
    corners = corners.maximum(visible[:, None, :2]).minimum(visible[:, None, 2:])
    moved = box_ops.transform(corners.flatten(1), matrices[batch.image_index]).float()
    moved = box_ops.clip(moved, pre.output_image_width, pre.output_image_height)
    sizes = moved[:, 2:] - moved[:, :2]
    at_least = torch.tensor([pre.min_bbox_width, pre.min_bbox_height])
    inside = (corners[:, 1] > corners[:, 0]).all(dim=1)  # something of it was on the image
    kept = inside & ((sizes > 0) & (sizes >= at_least)).all(dim=1)
    return moved, kept


def _labels(batch: Batch, boxes: Tensor, kept: Tensor, device: torch.device | str) -> Labels:
    """The labels that a mask [N] names, with their boxes [N, 4] moved."""
    return Labels(
        boxes[kept].to(device),
        batch.classes[kept].to(device),
        batch.image_index[kept].to(device),
        [name for name, is_kept in zip(batch.names, kept.tolist(), strict=True) if is_kept],
    )


def _truncated_normal(uniform: Tensor) -> Tensor:
    """Uniform draws in [0, 1) as standard normal ones, cut at two deviations."""
    return math.sqrt(2) * torch.erfinv((2 * uniform - 1) * math.erf(math.sqrt(2)))


def _identity(count: int) -> Tensor:
    return torch.eye(3, dtype=torch.float64).repeat(count, 1, 1)


def _translation(offsets: Tensor) -> Tensor:
    matrices = _identity(len(offsets))
    matrices[:, :2, 2] = offsets
    return matrices


def _scaling(factors: Tensor) -> Tensor:
    matrices = _identity(len(factors))
    matrices[:, 0, 0], matrices[:, 1, 1] = factors.unbind(1)
    return matrices


def _rotation(radians: Tensor) -> Tensor:
    matrices = _identity(len(radians))
    cosine, sine = torch.cos(radians), torch.sin(radians)
    matrices[:, 0, 0], matrices[:, 0, 1] = cosine, -sine
    matrices[:, 1, 0], matrices[:, 1, 1] = sine, cosine
    return matrices
