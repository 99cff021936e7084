/* Recursive edge filter: two passes over the rows of an image, two over its columns (floats) */
#include <math.h>

#include "kernel.h"
enum { W = SIZE(64, 720, 4096), H = SIZE(64, 480, 2160) };
static float in[W][H], out[W][H], there[W][H], back[W][H];

void init(void) {
    for (int i = 0; i < W; i++) for (int j = 0; j < H; j++) in[i][j] = (float)((313 * i + 991 * j) % 65536) / 65535;
}

void kernel(void) {
    const float alpha = 0.25f;
    const float k = (1 - expf(-alpha)) * (1 - expf(-alpha)) / (1 + 2 * alpha * expf(-alpha) - expf(2 * alpha));
    const float a1 = k, a2 = k * expf(-alpha) * (alpha - 1);
    const float a3 = k * expf(-alpha) * (alpha + 1), a4 = -k * expf(-2 * alpha);
    const float b1 = powf(2, -alpha), b2 = -expf(-2 * alpha);

    for (int i = 0; i < W; i++) {
        float ym1 = 0, ym2 = 0, xm1 = 0;
        for (int j = 0; j < H; j++) {
            there[i][j] = a1 * in[i][j] + a2 * xm1 + b1 * ym1 + b2 * ym2;
            xm1 = in[i][j];
            ym2 = ym1;
            ym1 = there[i][j];
        }
    }
    for (int i = 0; i < W; i++) {
        float yp1 = 0, yp2 = 0, xp1 = 0, xp2 = 0;
        for (int j = H - 1; j >= 0; j--) {
            back[i][j] = a3 * xp1 + a4 * xp2 + b1 * yp1 + b2 * yp2;
            xp2 = xp1;
            xp1 = in[i][j];
            yp2 = yp1;
            yp1 = back[i][j];
        }
    }
    for (int i = 0; i < W; i++) for (int j = 0; j < H; j++) out[i][j] = there[i][j] + back[i][j];

    for (int j = 0; j < H; j++) {
        float tm1 = 0, ym1 = 0, ym2 = 0;
        for (int i = 0; i < W; i++) {
            there[i][j] = a1 * out[i][j] + a2 * tm1 + b1 * ym1 + b2 * ym2;
            tm1 = out[i][j];
            ym2 = ym1;
            ym1 = there[i][j];
        }
    }
    for (int j = 0; j < H; j++) {
        float tp1 = 0, tp2 = 0, yp1 = 0, yp2 = 0;
        for (int i = W - 1; i >= 0; i--) {
            back[i][j] = a3 * tp1 + a4 * tp2 + b1 * yp1 + b2 * yp2;
            tp2 = tp1;
            tp1 = out[i][j];
            yp2 = yp1;
            yp1 = back[i][j];
        }
    }
    for (int i = 0; i < W; i++) for (int j = 0; j < H; j++) out[i][j] = there[i][j] + back[i][j];
}

double checksum(void) {
    double total = 0;
    for (int i = 0; i < W; i++) for (int j = 0; j < H; j++) total += out[i][j];
    return total;
}
