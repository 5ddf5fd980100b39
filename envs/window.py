"""A window for `render_mode="human"`, by pygame, which is needed for nothing else."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import numpy as np
from gymnasium.error import DependencyNotInstalled

from envs.render import RENDER_MODES

HUMAN = "human"
FPS = 4  # ticks a second
# Gymnasium's checks try each mode that is declared.
WINDOW_MODES = (*RENDER_MODES, HUMAN) if find_spec("pygame") else RENDER_MODES


class Window:
    """Shows one picture after another; it opens with the first.

    Raises: gymnasium.error.DependencyNotInstalled: there is no pygame.
    """

    def __init__(self, title: str, fps: int):
        try:
            import pygame
        except ImportError:
            raise DependencyNotInstalled('render_mode="human" needs pygame: pip install pygame') from None
        self.title = title
        self.fps = fps
        self.pygame: Any = pygame
        self.screen: Any = None

    def show(self, image: np.ndarray) -> None:
        """image: uint8 [h, w, 3]. Waits, so that no more than `fps` pictures a second are shown."""
        pygame = self.pygame
        if self.screen is None:
            pygame.display.init()
            pygame.display.set_caption(self.title)
            self.screen = pygame.display.set_mode((image.shape[1], image.shape[0]))
            self.clock = pygame.time.Clock()
        surface = pygame.surfarray.make_surface(image.swapaxes(0, 1))  # pygame's first axis is x
        self.screen.blit(surface, (0, 0))
        pygame.event.pump()  # else the system takes the window for dead
        pygame.display.flip()
        self.clock.tick(self.fps)

    def close(self) -> None:
        """Calling it twice is fine."""
        if self.screen is not None:
            self.pygame.display.quit()
            self.screen = None
