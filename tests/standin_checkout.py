"""A folder that looks like the authors' checkouts to `lamella reproduce --against`: same names, written for tests.

Nothing of it was taken from anybody. Every file begins with an import of a package that does not exist, as real ones
begin with packages that may not be there.
"""

from pathlib import Path

__all__ = ["FILES", "write_checkout"]

FILES: dict[str, str] = {}

FILES["methods/inflora.py"] = """
class InfLoRA(BaseLearner):
    def update_DualGPM(self, mat_list):
        def axes(M):
            U, s, _ = np.linalg.svd(M)
            return U, s**2

        share = self.lamb + (self.lame - self.lamb) * self._cur_task / self.total_sessions
        for number, G in enumerate(mat_list):
            whole = float((G * G).sum())
            if number == len(self.feature_list):
                vectors, energies = axes(G)
                count = max(int((np.cumsum(energies) / whole < share).sum()), 1)
                self.feature_list.append(vectors[:, :count])
                self.project_type.append("remove")
            elif self.project_type[number] == "remove":
                kept = self.feature_list[number]
                vectors, energies = axes(G - kept @ (kept.T @ G))
                missing, count = energies.sum(), 0
                while (whole - missing) / whole < share:
                    missing, count = missing - energies[count], count + 1
                self.feature_list[number] = np.concatenate([kept, vectors[:, :count]], 1)
            else:
                free = self.feature_list[number]
                vectors, energies = axes(free @ (free.T @ G))
                missing, count = energies.sum(), 0
                while missing / whole >= 1 - share:
                    missing, count = missing - energies[count], count + 1
                rest = free - vectors[:, :count] @ (vectors[:, :count].T @ free)
                self.feature_list[number] = axes(rest)[0][:, : free.shape[1] - count]
            kept = self.feature_list[number]
            if self.project_type[number] == "remove" and 2 * kept.shape[1] > len(kept):
                self.feature_list[number] = np.linalg.svd(kept)[0][:, kept.shape[1] :]
                self.project_type[number] = "retain"
"""
FILES["utils/schedulers.py"] = """
import math


class CosineSchedule:
    def __init__(self, optimizer, K):
        self.groups, self.K, self.steps = optimizer.param_groups, K, 0
        self.first = [group["lr"] for group in self.groups]

    def step(self):
        for group, first in zip(self.groups, self.first):
            group["lr"] = first * math.cos(0.495 * math.pi * self.steps / (self.K - 1))
        self.steps += 1
"""
FILES["src/uie_trainer_lora.py"] = """
class UIETrainer(Seq2SeqTrainer):
    def training_step(self, model: nn.Module, inputs: Dict[str, Union[torch.Tensor, Any]]) -> torch.Tensor:
        model.train()
        with self.compute_loss_context_manager():
            loss = self.compute_loss(model, self._prepare_inputs(inputs))
        named = dict(self.model.named_parameters())
        for name, new in named.items():
            if "loranew_A" in name:
                shared = named[name.replace("loranew_A", "lora_A")] @ new.T
                loss = loss + self.args.lamda_1 * shared.abs().sum() + self.args.lamda_2 * new.norm()
        logger.info(f"{loss.item()}")
        loss.backward()
        return loss.detach()
"""
FILES["backbone/lora.py"] = """
class ParameterWrapper(nn.Module):
    def __init__(self, param):
        super(ParameterWrapper, self).__init__()
        self.param = param

    def forward(self, x):
        return self.param * x


class _LoRA_qkv_timm_train(nn.Module):
    def __init__(
        self, qkv, a_q, b_q, a_v, b_v, task_id, saved_A, saved_B, t_layer_i, rank, factor, factor_prev, eval1=False
    ):
        super().__init__()
        self.qkv, self.new = qkv, [(a_q.cuda(), b_q.cuda()), (a_v.cuda(), b_v.cuda())]
        self.task_id, self.saved_A, self.saved_B, self.at = task_id, saved_A, saved_B, 2 * t_layer_i
        self.factor, self.factor_prev = factor, factor_prev

    def forward(self, x):
        width, parts = self.qkv.in_features, []
        for i, (a, b) in enumerate(self.new):
            added = self.factor[0](b(a(x)))
            for t in range(self.task_id):
                A = self.saved_A[f"saved_A_{t}"][self.at + i].weight
                B = self.saved_B[f"saved_B_{t}"][self.at + i].weight
                added = added + self.factor_prev[t](x @ A.T @ B.T / A.norm() / B.norm())
            parts.append(added)
        return self.qkv(x) + torch.cat([parts[0], torch.zeros_like(parts[0]), parts[1]], -1)
"""
FILES["RanPAC.py"] = """
class Learner(BaseLearner):
    def optimise_ridge_parameter(self, Features, Y):
        cut = int(0.8 * len(Features))
        fit, held = Features[:cut].double(), Features[cut:].double()
        errors = {}
        for power in range(-8, 9):
            level = 10.0**power * torch.eye(fit.shape[1])
            answer = held @ torch.linalg.solve(fit.T @ fit + level, fit.T @ Y[:cut].double())
            errors[10.0**power] = float(F.mse_loss(answer, Y[cut:].double()))
        return min(errors, key=errors.get)

    def replace_fc(self, trainloader):
        network = self._network.eval()
        found = [(network.convnet(data.cuda()), label) for _, data, label in trainloader]
        h = torch.relu(torch.cat([f for f, _ in found]).to("cuda:0") @ self.W_rand)
        Y = target2onehot(torch.cat([label for _, label in found]), self.total_classnum)
        self.G, self.Q = self.G + h.T @ h, self.Q + h.T @ Y
        ridge = self.optimise_ridge_parameter(h, Y)
        inverse = torch.linalg.inv(self.G.double() + ridge * torch.eye(len(self.G)))
        network.fc.weight.data = (inverse @ self.Q.double()).T.float().to(device="cuda")
"""
FILES["utils/toolkit.py"] = """
def target2onehot(targets, n_classes):
    return F.one_hot(targets, n_classes).float()
"""
KD = """
T = 2

def _KD_loss(pred, soft, T):
    return -((soft / T).softmax(1) * (pred / T).log_softmax(1)).sum(1).mean()
"""
FILES |= {f"models/{name}.py": KD for name in ("icarl", "lwf", "wa")}
FILES["utils/inc_net.py"] = """
class IncrementalNet(BaseNet):
    def weight_align(self, increment):
        lengths = self.fc.weight.data.norm(dim=1)
        self.fc.weight.data[-increment:] *= lengths[:-increment].mean() / lengths[-increment:].mean()
"""
FILES["models/base.py"] = """
EPSILON = 1e-8
batch_size = 64

class BaseLearner(object):
    def _construct_exemplar(self, data_manager, m):
        for number in range(self._known_classes, self._total_classes):
            data, _, there = data_manager.get_dataset(np.arange(number, number + 1), source="train", ret_data=True)
            x, _ = self._extract_vectors(DataLoader(there, batch_size=batch_size))
            x = x / (np.linalg.norm(x, axis=1, keepdims=True) + EPSILON)
            chosen = []
            for k in range(1, m + 1):
                away = np.linalg.norm(x.mean(0) - (x + x[chosen].sum(0)) / k, axis=1)
                away[chosen] = np.inf
                chosen.append(int(away.argmin()))
            own = np.array([data[i] for i in chosen])
            self._data_memory = np.concatenate([self._data_memory, own])

    def _compute_class_mean(self, data_manager, check_diff=False, oracle=False):
        means, covs = list(getattr(self, "_class_means", [])), list(getattr(self, "_class_covs", []))
        for number in range(len(means), self._total_classes):
            there = data_manager.get_dataset(np.array([number]), source="train", mode="test", ret_data=True)[2]
            found = [self._network.extract_vector(x) for _, x, _ in DataLoader(there, batch_size=batch_size)]
            away = torch.cat(found).detach().double()
            means.append(away.mean(0).numpy())
            away = away - away.mean(0)
            covs.append((away.T @ away / (len(away) - 1) + 1e-4 * torch.eye(away.shape[1])).float())
        self._class_means, self._class_covs = np.stack(means), torch.stack(covs)
"""
FILES["convs/linears.py"] = """
class SimpleContinualLinear(nn.Module):
    def __init__(self, embed_dim, nb_classes):
        super().__init__()
        self.embed_dim, self.heads = embed_dim, nn.ModuleList()
        self.update(nb_classes)

    def update(self, nb_classes, freeze_old=True):
        self.heads.requires_grad_(not freeze_old)
        self.heads.append(nn.Sequential(nn.Linear(self.embed_dim, nb_classes)))
        trunc_normal_(self.heads[-1][0].weight, std=0.02)

    def backup(self):
        self.kept = deepcopy(self.state_dict())

    def recall(self):
        self.load_state_dict(self.kept)

    def forward(self, x):
        return {"logits": torch.cat([head(x) for head in self.heads], -1)}
"""
FILES["models/slca.py"] = """
milestones = [60]
lrate, weight_decay = 0.01, 5e-4

class SLCA(BaseLearner):
    def after_task(self):
        self._known_classes = self._total_classes
        self._network.fc.recall()

    def incremental_train(self, data_manager):
        self._cur_task += 1
        self.task_sizes.append(data_manager.get_task_size(self._cur_task))
        self._total_classes = self._known_classes + self.task_sizes[-1]
        self._network.update_fc(self.task_sizes[-1])
        new = np.arange(self._known_classes, self._total_classes)
        self._slow(DataLoader(data_manager.get_dataset(new, source="train", mode="train"), shuffle=True))
        self._network.fc.backup()
        self._compute_class_mean(data_manager)
        if self._cur_task:
            self._align(self.task_sizes[-1])

    def _slow(self, loader):
        network = self._network.train()
        groups = [
            {"params": network.convnet.parameters(), "lr": 0.01 * self.bcb_lrscale},
            {"params": network.fc.heads[-1].parameters()},
        ]
        optimizer = optim.SGD(groups, lr=0.01, momentum=0.9, weight_decay=5e-4)
        schedule = optim.lr_scheduler.MultiStepLR(optimizer, milestones, gamma=0.1)
        for _ in range(20):
            for _, x, y in loader:
                logits = network(x)["logits"][:, self._known_classes :]
                optimizer.zero_grad()
                F.cross_entropy(logits, y - self._known_classes).backward()
                optimizer.step()
            schedule.step()

    def _align(self, size):
        fc, classes = self._network.fc.requires_grad_(True), self._total_classes
        optimizer = optim.SGD(fc.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
        schedule = optim.lr_scheduler.CosineAnnealingLR(optimizer, 5)
        for _ in range(5):
            drawn = []
            for number in range(classes):
                age = 0.9 + 0.1 * (number // size + 1) / (self._cur_task + 1)
                mean = (torch.tensor(self._class_means[number]).double() * age).float()
                drawn.append(MultivariateNormal(mean, self._class_covs[number]).sample((256,)))
            order = torch.randperm(256 * classes)
            x, y = torch.cat(drawn)[order], torch.arange(classes).repeat_interleave(256)[order]
            for part, right in zip(x.split(256), y.split(256)):
                logits = fc(part)["logits"]
                norms = torch.stack([own.norm(dim=1) + 1e-7 for own in logits.split(self.task_sizes, 1)]).mean(0)
                optimizer.zero_grad()
                F.cross_entropy(logits / norms[:, None] / self.logit_norm, right).backward()
                optimizer.step()
            schedule.step()
"""
FILES["models/simplecil.py"] = """
class SimpleCIL(BaseLearner):
    def replace_fc(self, trainloader, model, args):
        with torch.no_grad():
            found = [(model.eval()(data.cuda())["features"], label) for _, data, label in trainloader]
        x, y = torch.cat([f for f, _ in found]), torch.cat([label for _, label in found])
        for number in np.unique(self.train_dataset.labels):
            self._network.fc.weight.data[number] = x[y == number].sum(0) / (y == number).sum()
"""
FILES["models/zoo.py"] = """
class CodaPrompt(nn.Module):
    def __init__(self, emb_d, n_tasks, prompt_param, key_dim=768):
        super().__init__()
        self.e_pool_size, self.e_p_length, self.ortho_mu = int(prompt_param[0]), int(prompt_param[1]), prompt_param[2]
        self.task_count, self.n_tasks = 0, n_tasks
        for layer in range(5):
            setattr(self, f"e_p_{layer}", tensor_prompt(self.e_pool_size, self.e_p_length, emb_d))
            setattr(self, f"e_k_{layer}", tensor_prompt(self.e_pool_size, key_dim))
            setattr(self, f"e_a_{layer}", tensor_prompt(self.e_pool_size, key_dim))

    def gram_schmidt(self, vv):
        flat = vv.reshape(len(vv), -1).clone()
        own = self.e_pool_size // self.n_tasks
        first = self.task_count * own
        for row in range(first, first + own):
            drawn = torch.randn_like(flat[row])
            before = flat[:row]
            flat[row] = drawn - ((before @ drawn) / before.square().sum(1)) @ before
        flat[first : first + own] /= flat[first : first + own].norm(dim=1, keepdim=True)
        return nn.Parameter(flat.reshape(vv.shape))

    def forward(self, x_querry, l, x_block, train=False, task_id=None):
        if l >= 5:
            return None, 0, x_block
        own = self.e_pool_size // self.n_tasks
        old, now = self.task_count * own, (self.task_count + 1) * own
        parts = []
        for letter in "kap":
            tensor = getattr(self, f"e_{letter}_{l}")[:now]
            parts.append(torch.cat([tensor[:old].detach(), tensor[old:]]) if train else tensor)
        key, attention, prompt = parts
        weights = F.cosine_similarity(x_querry[:, None] * attention, key[None], dim=2)
        summed = (weights[:, :, None, None] * prompt).sum(1)
        loss = self.ortho_mu * sum(ortho_penalty(tensor.flatten(1)) for tensor in parts) if train else 0
        return [summed[:, : self.e_p_length // 2], summed[:, self.e_p_length // 2 :]], loss, x_block

def ortho_penalty(t):
    return (t @ t.T - torch.eye(len(t)).cuda()).square().mean()

def tensor_prompt(a, b, c=None, ortho=False):
    return nn.Parameter(torch.rand((a, b) if c is None else (a, b, c)))

class ViTZoo(nn.Module):
    def forward(self, x, pen=False, train=False):
        with torch.no_grad():
            query = self.feat(x)[0][:, 0]
        tokens, loss = self.feat(x, prompt=self.prompt, q=query, train=train, task_id=self.task_id)
        out = tokens[:, 0] if pen else self.last(tokens[:, 0])
        return (out, loss) if train else out
"""
FILES["models/vit.py"] = """
class Mlp(nn.Module):
    def __init__(self, width, hidden):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(x)))

class Attention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads, self.qkv, self.proj = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x, prompt=None):
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        if prompt is not None:
            k, v = torch.cat([prompt[0], k], 1), torch.cat([prompt[1], v], 1)
        q, k, v = (part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in (q, k, v))
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))

class Block(nn.Module):
    def __init__(self, width, heads, ratio):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.attn, self.mlp = Attention(width, heads), Mlp(width, int(width * ratio))

    def forward(self, x, prompt=None):
        x = x + self.attn(self.norm1(x), prompt)
        return x + self.mlp(self.norm2(x))

class VisionTransformer(nn.Module):
    def __init__(self, img_size=224, patch_size=16, embed_dim=768, depth=12, num_heads=12, mlp_ratio=4.0):
        super().__init__()
        self.patch_embed = PatchEmbed(img_size=img_size, patch_size=patch_size, embed_dim=embed_dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, self.patch_embed.num_patches + 1, embed_dim))
        self.blocks = nn.ModuleList([Block(embed_dim, num_heads, mlp_ratio) for _ in range(depth)])
        self.norm = nn.LayerNorm(embed_dim, eps=1e-6)

    def forward(self, x, register_blk=-1, prompt=None, q=None, train=False, task_id=None):
        x = self.patch_embed(x)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1) + self.pos_embed
        penalty = torch.zeros((1,), requires_grad=True).cuda()
        for number, block in enumerate(self.blocks):
            prefix, loss = None, 0
            if prompt is not None:
                prefix, loss, x = prompt.forward(q, number, x, train=train, task_id=task_id)
            penalty += loss
            x = block(x, prefix)
        return self.norm(x), penalty
"""
FILES["learners/prompt.py"] = """
class Prompt(NormalNN):
    def update_model(self, inputs, targets):
        logits, penalty = self.model(inputs, train=True)
        own = logits[:, self.last_valid_out_dim : self.valid_out_dim]
        weights = self.dw_k[torch.full_like(targets, -1)]
        loss = self.criterion(own, targets - self.last_valid_out_dim, weights) + penalty.sum()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.detach(), logits
"""
FILES["learners/default.py"] = """
class NormalNN(nn.Module):
    def criterion(self, logits, targets, data_weights):
        return (data_weights * self.criterion_fn(logits, targets)).mean()
"""
FILES["src/t5_gainlora_inflora.py"] = """
class Trans_input(nn.Module):
    def __init__(self, d_model, hidden_dim=100, n_tasks=1):
        super().__init__()
        self.input_linear = nn.Parameter(torch.zeros(n_tasks, hidden_dim, d_model))
        self.output_linear = nn.Parameter(torch.zeros(n_tasks, d_model, hidden_dim))

    def forward(self, x):
        first = F.silu(torch.einsum("nid,thd->nth", x, self.input_linear))
        return F.silu(torch.einsum("nth,tdh->ntd", first, self.output_linear))


class T5Stack(T5PreTrainedModel):
    def cal_attention(self, prompt_key, x, return_logits=False):
        cosine = F.cosine_similarity(x, prompt_key, dim=-1)[..., None]
        return torch.tanh(2 * cosine).abs()
"""
FILES["src/cl_trainer_gainlora_inflora.py"] = """
class GainLoRA_InfLoRA_Trainer(Seq2SeqTrainer):
    def get_repsentation(self):
        def more(kept, matrix, least):
            whole, G = matrix.square().sum(), matrix
            if kept is not None:
                G = G - kept @ (kept.T @ G)
            vectors, values, _ = torch.linalg.svd(G)
            reached = (whole - G.square().sum() + values.square().cumsum(0)) / whole
            if kept is None:
                return vectors[:, : max(int((reached < least).sum()), 1)]
            count = 0 if 1 - G.square().sum() / whole >= least else 1 + int((reached < least).sum())
            return torch.cat([kept, vectors[:, :count]], 1)[:, : len(matrix)]

        layers, gates, task = self.load_previous_reg_matrix()
        encoder, found = self.model.encoder, [m for _, m in self.model.named_modules() if hasattr(m, "get_feature")]
        first = not layers
        if first:
            layers = [{} for _ in found]
            gates = [{}, None, {}]
        least = self.args.threshold + (1 - self.args.threshold) * task / 15
        for kept, module in zip(layers, found):
            kept[0] = more(kept.get(0), module.matrix[0], least)
        least = self.args.transthreshold + (1 - self.args.transthreshold) * task / 15
        gates[1] = more(gates[1], encoder.matrix_trans_2, least)
        for kept, matrix in ((gates[0], encoder.matrix_trans_1), (gates[2], encoder.matrix_trans_3)):
            kept[0] = more(kept.get(0), matrix[0], least)
        self.feature_list, self.feature_trans_list = layers, gates
"""
FILES["lora/utils.py"] = """
class LoRALayer(torch.nn.Module):
    def __init__(self, in_dim, out_dim, rank, alpha, pos="", layer=0):
        super().__init__()
        self.shape, self.rank, self.alpha, self.number = (in_dim, out_dim), rank, alpha, 0
        self.lora_A, self.lora_B = nn.ModuleList(), nn.ModuleList()
        self.register_buffer("folded", torch.zeros(out_dim, in_dim))
        self.sums, self.tokens = torch.zeros(in_dim, in_dim), 0
        self.begin()

    def begin(self):
        self.lora_A.append(nn.Linear(self.shape[0], self.rank, bias=False))
        self.lora_B.append(nn.Linear(self.rank, self.shape[1], bias=False))
        nn.init.zeros_(self.lora_B[-1].weight)

    def update(self, task_id):
        self.folded = self.folded + (self.lora_B[-1].weight @ self.lora_A[-1].weight).detach()
        self.begin()
        self.number = task_id

    @property
    def cur_matrix(self):
        return self.sums / self.tokens

    def update_grad_before_train(self, task_id):
        if self.number:
            A = (self.feature_list @ torch.randn(self.feature_list.shape[1], self.rank)).T
            length = self.lora_A[task_id].weight.data.norm()
            self.lora_A[task_id].weight.data = A * length / A.norm()

    def update_grad_after_train(self, task_id):
        values, vectors = torch.linalg.eigh(self.cur_matrix)
        d = len(values)
        lost = 1 - values.flip(0).cumsum(0) / values.sum()
        free = torch.arange(d - 1, -1, -1) / d
        count = max(int(((self.number + 1) * lost - self.alpha * free).argmin()) + 1, 2)
        wandb.log({"free": d - count})
        self.feature_list = vectors.flip(1)[:, count:]

    def forward(self, x, get_cur_feat=False):
        if get_cur_feat:
            flat = x.detach().flatten(0, 1)
            self.sums, self.tokens = self.sums + flat.T @ flat, self.tokens + len(flat)
        return x @ self.folded.T + self.lora_B[-1](self.lora_A[-1](x))


class QkvWithLoRA(torch.nn.Module):
    def __init__(self, qkv, rank, alpha, layer):
        super().__init__()
        self.qkv, width = qkv, qkv.in_features
        self.lora_k, self.lora_v = (LoRALayer(width, width, rank, alpha, pos, layer) for pos in "kv")

    def update(self, task_id):
        for side in (self.lora_k, self.lora_v):
            side.update(task_id)

    def update_grad(self, task_id, many):
        for side in (self.lora_k, self.lora_v):
            (side.update_grad_before_train if "before" in many else side.update_grad_after_train)(task_id)

    def forward(self, x, get_cur_feat=False):
        k, v = self.lora_k(x, get_cur_feat), self.lora_v(x, get_cur_feat)
        return self.qkv(x) + torch.cat([torch.zeros_like(k), k, v], -1)
"""
FILES["models/vit_lora.py"] = """
class Attention_LoRA(nn.Module):
    def __init__(self, dim, num_heads=8, qkv_bias=False, qk_scale=None, attn_drop=0.0, proj_drop=0.0, r=64, n_tasks=10):
        super().__init__()
        self.num_heads, self.qkv, self.proj = num_heads, nn.Linear(dim, 3 * dim, bias=qkv_bias), nn.Linear(dim, dim)
        for name, shape in (("A", (dim, r)), ("B", (r, dim))):
            for side in "kv":
                pairs = nn.ModuleList(nn.Linear(*shape, bias=False) for _ in range(n_tasks))
                setattr(self, f"lora_{name}_{side}", pairs)
        self.sums, self.tokens = torch.zeros(dim, dim), 0

    @property
    def cur_matrix(self):
        return self.sums / self.tokens

    def forward(self, x, task, register_hook=False, get_feat=False, get_cur_feat=False, get_cur_x=False):
        q, k, v = self.qkv(x).chunk(3, -1)
        if get_cur_x:
            flat = x.detach().flatten(0, 1)
            self.sums, self.tokens = self.sums + flat.T @ flat, self.tokens + len(flat)
        sign, count = (-1, task) if get_cur_x else (1, task + 1)
        for t in range(count):
            k = k + sign * self.lora_B_k[t](self.lora_A_k[t](x))
            v = v + sign * self.lora_B_v[t](self.lora_A_v[t](x))
        q, k, v = (each.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for each in (q, k, v))
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
"""
FILES["optimgrad/adam_proj.py"] = """
class Adam(Optimizer):
    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, svd=False, thres=1.001):
        super().__init__(params, dict(lr=lr, svd=svd, thres=thres))
        self.betas, self.eps, self.eigens, self.transforms = betas, eps, defaultdict(dict), {}

    def get_eigens(self, fea_in):
        for p, moment in fea_in.items():
            values, vectors = torch.linalg.eigh(moment)
            self.eigens[p] = {"value": values.flip(0), "vector": vectors.flip(1)}

    def get_transforms(self):
        for group in self.param_groups:
            for p in group["params"] if group["svd"] else ():
                shares = self.eigens[p]["value"].cumsum(0) / self.eigens[p]["value"].sum()
                kept = self.eigens[p]["vector"][:, : int((shares < group["thres"]).sum()) + 1]
                self.transforms[p] = kept @ kept.T / (kept @ kept.T).norm()

    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                kept = self.state[p] or {"t": 0, "m": torch.zeros_like(p), "v": torch.zeros_like(p)}
                kept["t"] += 1
                for name, power, decay in (("m", 1, self.betas[0]), ("v", 2, self.betas[1])):
                    kept[name] = decay * kept[name] + (1 - decay) * p.grad**power
                self.state[p].update(kept)
                m, v = (kept[name] / (1 - beta ** kept["t"]) for name, beta in zip("mv", self.betas))
                move = -group["lr"] * m / (v.sqrt() + self.eps)
                P = self.transforms[p]
                p.data += P @ move if len(P) == len(move) else move @ P
"""
FILES["utils/losses.py"] = """
class AugmentedTripletLoss(nn.Module):
    def __init__(self, margin=1.0, norm=2):
        super().__init__()
        self.margin = margin

    def forward(self, inputs, targets, center):
        means = F.normalize(torch.as_tensor(np.array(center)), dim=1)
        own = (2 - 2 * inputs @ inputs.T).clamp(min=1e-12).sqrt()
        losses = []
        for i, label in enumerate(targets):
            far = own[i][targets == label].max()
            near = torch.cat([own[i][targets != label], (inputs[i] - means).norm(dim=1)]).min()
            losses.append(F.relu(far - near + self.margin))
        return torch.stack(losses).mean()
"""
FILES["methods/lorasub_drs.py"] = """
class LoRAsub_DRS(BaseLearner):
    def _eval_model(self, loader, class_means):
        self._network.eval()
        vectors, labels = self._extract_vectors(loader)
        vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        return cdist(class_means, vectors, "sqeuclidean").T.argsort(1)[:, : self.topk], labels
"""
FILES["models/vit_ewclora.py"] = """
class Attention_LoRA(nn.Module):
    def __init__(self, dim, num_heads=8, qkv_bias=False, scale=None, attn_drop=0.0, proj_drop=0.0, r=64, n_tasks=10):
        super().__init__()
        self.num_heads, self.qkv, self.proj = num_heads, nn.Linear(dim, 3 * dim, bias=qkv_bias), nn.Linear(dim, dim)
        for side in "kv":
            self.register_buffer(f"folded_{side}", torch.zeros(dim, dim))
            for name, shape in (("A", (dim, r)), ("B", (r, dim))):
                new = nn.Linear(*shape, bias=False)
                setattr(new.weight, f"_is_new_{name.lower()}", True)
                setattr(self, f"lora_new_{name}_{side}", new)

    def init_param(self):
        for side in "kv":
            nn.init.zeros_(getattr(self, f"lora_new_B_{side}").weight)

    def product(self, side):
        return getattr(self, f"lora_new_B_{side}").weight @ getattr(self, f"lora_new_A_{side}").weight

    def accumulate_and_reset_lora(self):
        for side in "kv":
            setattr(self, f"folded_{side}", getattr(self, f"folded_{side}") + self.product(side).detach())
        self.init_param()

    def forward(self, x, use_new=True, register_hook=False):
        q, *others = self.qkv(x).chunk(3, -1)
        moved = []
        for side, other in zip("kv", others):
            new = self.product(side)
            if register_hook:
                new.register_hook(lambda grad, name=f"delta_w_{side}_new_grad": setattr(self, name, grad))
            moved.append(other + x @ (getattr(self, f"folded_{side}") + new).T)
        q, k, v = (each.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for each in (q, *moved))
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
"""
FILES["methods/ewclora.py"] = """
class FisherComputer:
    def __init__(self, task_id, network, dataloader, increment, criterion, device=None):
        self.model, self.loader, self.criterion, self.first = network, dataloader, criterion, task_id * increment

    def compute(self, max_batches=None):
        sums, count = 0, 0
        for _, x, y in tqdm(self.loader):
            self.model.zero_grad()
            self.criterion(self.model(x, use_new=True, register_hook=True)["logits"], y - self.first).backward()
            found = [getattr(m, f"delta_w_{side}_new_grad", None) for m in self.model.modules() for side in "kv"]
            sums = sums + len(x) * torch.stack([slope for slope in found if slope is not None]).square()
            count += len(x)
        return list(sums / count)


class EWCLoRA(BaseLearner):
    def new(self, name):
        return [p for p in self.network.parameters() if getattr(p, f"_is_new_{name}", False)]

    def after_task(self):
        self.count_updates += 1
        found = FisherComputer(
            self.cur_task, self.network, self.train_loader, self.increment, F.cross_entropy, self.device
        ).compute()
        before = self.omega_W or [0 for _ in found]
        self.omega_W = [self.gamma * old + more for old, more in zip(before, found)]
        self.network.accumulate_and_reset_lora()

    def _train_function(self, train_loader, optimizer, scheduler):
        for _, x, y in train_loader:
            loss = F.cross_entropy(self.network(x, use_new=True)["logits"], y - self.known_classes)
            for importance, A, B in zip(self.omega_W, self.new("a"), self.new("b")):
                loss += self.ewc_weight / 2 * (importance * (B @ A).square()).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        scheduler.step()
"""

E2LORA = "class_incremental_learning"
FILES[f"{E2LORA}/utils/inc_net.py"] = """
init_threshold = 0.99999

def get_principal_direction_svd(act_data):
    D = act_data.detach().double().flatten(0, -2)
    D = D - D.mean(0)
    variances, vectors = torch.linalg.eigh(D.T @ D / (len(D) - 1))
    return variances.flip(0).clamp_min(0), vectors.flip(1).float()


def get_energy_threshold(eigenvalues, threshold=0.999):
    return 1 + int((eigenvalues.cumsum(0) / eigenvalues.sum() <= threshold).sum())


class LoRAMlp(Mlp):
    def __init__(self, inputs, hidden, outputs):
        super().__init__(inputs, hidden, outputs)
        self.lora_A1, self.lora_B1 = LoRAMlp.start(self, inputs, hidden)

    def start(self, inputs, outputs):
        self.sizes, self.role, self.pca_lora, self.eigenvalues = (inputs, outputs), "student", False, []
        self.pairs = nn.ModuleList(), nn.ModuleList()
        return self.pairs

    def add_task(self):
        (d, R), t, threshold = self.sizes, len(self.eigenvalues), init_threshold
        keep = [get_energy_threshold(own, threshold) for own in self.eigenvalues]
        while sum(keep) > t * R // (t + 1):
            threshold -= threshold_step
            keep = [get_energy_threshold(own, threshold) for own in self.eigenvalues]
        freed = [B.weight.data[:, k:] for B, k in zip(self.pairs[1], keep)]
        for A, B, k in zip(*self.pairs, keep):
            A.weight.data, B.weight.data = A.weight.data[:k], B.weight.data[:, :k]
        freed = torch.cat(freed, 1) if t else torch.zeros(R, R)
        for layers, weight in zip(self.pairs, (torch.zeros(freed.shape[1], d), freed)):
            layers.append(nn.Linear(*weight.T.shape, bias=False))
            layers[-1].weight.data = weight

    def added(self, x):
        both = list(zip(*self.pairs))
        if self.pca_lora:
            A, B = (layer.weight.data for layer in both[-1])
            variances, U = get_principal_direction_svd(x @ (B @ A).T)
            self.eigenvalues.append(variances)
            U = U[:, : len(A)]
            for layer, weight in zip(both[-1], (U.T @ B @ A, U)):
                layer.weight.data = weight
        return sum((B(A(x)) for A, B in both[: len(both) - (self.role == "teacher")]), 0)

    def forward(self, x):
        return self.fc2(self.act(self.fc1(x) + self.added(x)))


class LoRAAttention(Attention):
    add_task, added = LoRAMlp.add_task, LoRAMlp.added

    def __init__(self, inputs, heads):
        super().__init__(inputs, heads, qkv_bias=True)
        self.lora_A, self.lora_B = LoRAMlp.start(self, inputs, 3 * inputs)

    def forward(self, x, attn_mask=None):
        together = self.qkv(x) + self.added(x)
        q, k, v = together.unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class BaseNet(nn.Module):
    def __init__(self, args, pretrained):
        super().__init__()
        self.backbone, self.fc = get_backbone(args, pretrained), None
        for block in self.backbone.blocks:
            fc1, fc2 = block.mlp.fc1, block.mlp.fc2
            attention = LoRAAttention(block.attn.qkv.in_features, block.attn.num_heads)
            mlp = LoRAMlp(fc1.in_features, fc1.out_features, fc2.out_features)
            attention.load_state_dict(block.attn.state_dict())
            mlp.load_state_dict(block.mlp.state_dict())
            block.attn, block.mlp = attention, mlp


class E2LoRANet(BaseNet):
    def __init__(self, args, pretrained=True):
        super().__init__(args, pretrained)

    def extract_vector(self, x):
        return self.backbone(x)

    def update_fc(self, nb_classes):
        if self.fc is None:
            self.fc = SimpleContinualLinear(self.backbone.out_dim, nb_classes)
        else:
            self.fc.update(nb_classes)

    def forward(self, x, bcb_no_grad=False):
        return self.fc(self.extract_vector(x))
"""
FILES[f"{E2LORA}/backbone/linears.py"] = """
class SimpleContinualLinear(nn.Module):
    def __init__(self, embed_dim, nb_classes):
        super().__init__()
        self.width, self.heads = embed_dim, nn.ModuleList()
        self.update(nb_classes)

    def update(self, nb_classes):
        self.heads.append(nn.Sequential(nn.Linear(self.width, nb_classes)))

    def forward(self, x):
        return {"logits": torch.cat([head(x) for head in self.heads], 1)}
"""
FILES[f"{E2LORA}/models/e2lora.py"] = """
class Learner(BaseLearner):
    def _run(self, train_loader, test_loader, optimizer, scheduler):
        def play(role):
            for block in self._network.backbone.blocks:
                block.attn.role = block.mlp.role = role

        for _ in tqdm(range(self.epochs)):
            for _, x, y in train_loader:
                old, losses = self._known_classes, []
                logits = self._network.train()(x)["logits"]
                losses.append(F.cross_entropy(logits[:, old:], y - old))
                if self._cur_task:
                    play("teacher")
                    with torch.no_grad():
                        p = (self._network(x)["logits"][:, :old] / 2).softmax(1)
                    play("student")
                    q = (logits[:, :old] / 2).log_softmax(1)
                    losses.append((p * (p.log() - q)).sum(1).mean())
                optimizer.zero_grad()
                sum(losses).backward()
                optimizer.step()
            scheduler.step()

    def _pca_lora(self, train_loader):
        parts = [part for block in self._network.backbone.blocks for part in (block.attn, block.mlp)]
        for turning in (True, False):
            for part in parts:
                part.pca_lora = turning
            if turning:
                self._network.eval()(next(iter(train_loader))[1])
"""
FILES["models/decomposed_lora.py"] = """
def _random_fixed_A_init(dim, r):
    return nn.Linear(dim, r, bias=False)


def _zero_B_init(dim, r):
    return nn.Linear(r, 3 * dim, bias=False)


def _energy_merge(B, A, old, new, gamma):
    of_old, of_new = ((A @ M * A).sum(1) for M in (old, new))
    return B * (gamma * of_new / (of_old + gamma * of_new)) @ A


class FrozenA_TrainableB(nn.Module):
    def __init__(self, dim, r):
        super().__init__()
        self.A, self.B = _random_fixed_A_init(dim, r).double(), _zero_B_init(dim, r).double()


class Attention_LoRA(nn.Module):
    def __init__(self, dim, num_heads=8, qkv_bias=False, r=64, n_tasks=10):
        super().__init__()
        self.heads, self.rank = num_heads, r
        self.qkv, self.proj = nn.Linear(dim, 3 * dim, bias=qkv_bias), nn.Linear(dim, dim)
        self.S_lora, self.P_lora = (
            nn.ModuleList([FrozenA_TrainableB(dim, r) for _ in range(n_tasks)]) for _ in range(2)
        )
        self.seen, self.prev_matrix = [], torch.zeros(dim, dim, dtype=torch.float64)

    def _init_params(self, args):
        self.gamma = args["merge_gamma"]
        self.scales = args["slora_gamma"] / 2, args["plora_gamma"] / 2

    def moment(self):
        x = torch.cat(self.seen)
        self.seen = []
        return x.T @ x / len(x)

    def design(self, task, new):
        root = torch.linalg.cholesky(self.prev_matrix) if task else None
        directions = [torch.linalg.eigh(new + self.prev_matrix)[1].flip(1)]
        if task:
            inverse = torch.linalg.inv(root)
            best = torch.linalg.eigh(inverse @ new @ inverse.T)[1].flip(1)[:, : self.rank]
            directions.append(torch.linalg.qr(inverse.T @ best)[0])
        for units, U in zip((self.S_lora, self.P_lora), directions):
            units[task].A.weight.data = U[:, : self.rank].T / 3**0.5

    def fold(self, task, new):
        S, P = ((units[task].A.weight, units[task].B.weight) for units in (self.S_lora, self.P_lora))
        shared = _energy_merge(S[1], S[0], self.prev_matrix, new, self.gamma) if task else S[1] @ S[0]
        own = P[1] @ P[0] if task else 0
        self.qkv.weight.data += self.scales[0] * shared + self.scales[1] * own
        self.prev_matrix = self.prev_matrix + new
        S[1].data.zero_(), P[1].data.zero_()

    def forward(self, x, task, get_cur_feat=False):
        if get_cur_feat:
            self.seen.append(x.flatten(0, 1))
        units = (self.S_lora, self.P_lora) if task else (self.S_lora,)
        added = sum(g * unit[task].B(unit[task].A(x)) for g, unit in zip(self.scales, units))
        q, k, v = (self.qkv(x) + added).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
"""
FILES["methods/dlora.py"] = """
class Learner(BaseLearner):
    def _train(self, train_loader, test_loader):
        layers = [module for module in self._network.modules() if isinstance(module, Attention_LoRA)]

        def moments():
            for _, x, _ in train_loader:
                self._network(x, get_cur_feat=True)
            return [layer.moment() for layer in layers]

        with torch.no_grad():
            for layer, new in zip(layers, moments()):
                layer.design(self._cur_task, new)
        weights = [layer.S_lora[self._cur_task].B.weight for layer in layers]
        optimizer = optim.SGD(weights, lr=self.lrate if self._cur_task else self.init_lr)
        self.train_function(
            train_loader, test_loader, optimizer, optim.lr_scheduler.CosineAnnealingLR(optimizer, self.epochs)
        )
        with torch.no_grad():
            for layer, new in zip(layers, moments()):
                layer.fold(self._cur_task, new)
            for layer, new in zip(layers, moments()):
                layer.prev_matrix = layer.prev_matrix + new

    def train_function(self, train_loader, test_loader, optimizer, scheduler):
        loss_of = AngularPenaltySMLoss(loss_type="cosface", s=self.scale, m=self.margin)
        moved = [tensor for name, tensor in self._network.named_parameters() if "lora" in name]
        for _, x, y in train_loader:
            classes = y.unique()
            classes = classes[torch.randperm(len(classes))]
            first = torch.isin(y, classes[: len(classes) // 2])
            radius = self.args["rho"] * torch.rand(1)
            for source, target in ((first, ~first), (~first, first)):
                slopes = torch.autograd.grad(loss_of(self._network(x[source])["logits"], y[source]), moved)
                steps = [radius * slope / slope.norm() for slope in slopes]
                for tensor, step in zip(moved, steps):
                    tensor.data -= step
                optimizer.zero_grad()
                loss_of(self._network(x[target])["logits"], y[target]).backward()
                optimizer.step()
                for tensor, step in zip(moved, steps):
                    tensor.data += step
"""
FILES["models/network.py"] = """
class MANet(nn.Module):
    def interface(self, image, task_id=None):
        f = self.image_encoder(image, task_id=self.numtask - 1)[:, 0]
        rows = torch.cat([head.weight for head in self.classifier_pool])
        return F.cosine_similarity(f[:, None], rows[None], dim=2)
"""


def write_checkout(folder: Path, **changed: str) -> Path:
    """Write the files, and make it look like a clone at a commit.

    Args:
        folder: where.
        changed: what stands in place of a text, in whatever file has it.
    """
    for name, content in FILES.items():
        for old, new in changed.items():
            content = content.replace(old, new)
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(("" if "schedulers" in name else "import a_package_that_is_not_here\n") + content)
    (folder / ".git" / "refs" / "heads").mkdir(parents=True)
    (folder / ".git" / "HEAD").write_text("ref: refs/heads/main\n")
    (folder / ".git" / "refs" / "heads" / "main").write_text("0123456789" * 4 + "\n")
    return folder
